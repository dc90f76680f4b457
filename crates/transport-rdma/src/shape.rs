//! What a link is made of, for whoever measures what it should be. Does not own the reasons for the defaults (`lib.rs`).

use crate::{QPS_A_RAIL, QPS_A_RAIL_MAX, WORK_BYTES_MAX, WORKS_A_QP_MAX};

/// What the links that this process reads over are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// QPs on each rail, at most 8.
    pub qps_a_rail: usize,
    /// Work requests outstanding on one QP, at most 16; a card may allow fewer.
    pub works_a_qp_max: u8,
    /// Longest work request, at most 1 MiB.
    pub work_bytes_max: usize,
}

impl Default for Shape {
    fn default() -> Self {
        Self { qps_a_rail: QPS_A_RAIL, works_a_qp_max: WORKS_A_QP_MAX, work_bytes_max: WORK_BYTES_MAX }
    }
}

impl Shape {
    pub(crate) fn qps(self) -> usize {
        self.qps_a_rail.clamp(1, QPS_A_RAIL_MAX)
    }

    pub(crate) fn works(self) -> u8 {
        self.works_a_qp_max.clamp(1, WORKS_A_QP_MAX)
    }

    pub(crate) fn work_bytes(self) -> usize {
        self.work_bytes_max.clamp(1, WORK_BYTES_MAX)
    }
}
