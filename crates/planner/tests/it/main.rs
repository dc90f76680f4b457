//! Plans of whole swarms, by the planner's public face.

mod cost;
mod handover;
mod racks;
mod readers;
mod repair;
mod residues;
mod seeds;
mod shape;
mod stalls;
mod stragglers;
mod support;
