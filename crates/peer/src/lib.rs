//! peer

mod describe;
mod have_feed;
mod links;
mod service;
mod session;
