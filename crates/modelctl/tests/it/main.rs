//! `modelctl` from outside: exit codes, what it prints, and what it leaves on disk and in registries.

mod build;
mod doctor;
mod help;
mod inspect;
mod registry;
mod support;
mod verify;
