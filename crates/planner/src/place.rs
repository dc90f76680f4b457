//! Where a peer stands, as whoever runs it says. Does not own what a plan makes of it (`trees`).

/// The labels of a peer. Those who have none stand in one place together.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// What is joined by less than its machines could use together: a data centre, a room.
    pub zone: String,
    /// Within it, the machines of one switch.
    pub rack: String,
}
