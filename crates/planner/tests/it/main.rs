//! Plans of whole swarms, by the planner's public face.

mod cost;
mod repair;
mod support;
