//! Plans of whole swarms, by the planner's public face.

mod repair;
mod support;
