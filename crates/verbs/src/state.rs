//! The states that a queue pair goes through, what each step takes, and what is wrong if it fails. Does not own: the
//! queue pair.

use std::{fmt, mem};

use rdma_sys::{
    ibv_access_flags, ibv_gid, ibv_global_route, ibv_qp_attr, ibv_qp_attr_mask as mask, ibv_qp_state,
};

use crate::{Gid, Limits, LinkLayer, Port, context::mtu_of};

/// A queue pair as its peer names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QpAddress {
    /// Its number, 24 bits.
    pub qpn: u32,
    /// The number of the first packet that it sends, 24 bits.
    pub psn: u32,
    /// Its port's address on Ethernet.
    pub gid: [u8; 16],
    /// Its port's address on InfiniBand, within one subnet.
    pub lid: u16,
    /// The largest payload of its port.
    pub mtu_bytes: u32,
}

/// Our end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnEnd {
    /// The number of the first packet that we send, 24 bits.
    pub psn: u32,
    /// Which entry of the port's address table we speak from.
    pub gid_index: u8,
    /// The port.
    pub port: u8,
}

/// What connects two queue pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The other end.
    pub peer: QpAddress,
    /// Our end.
    pub own: OwnEnd,
    /// How many reads may be in flight, either way. No more than the smaller [`Limits::reads_in_flight_max`].
    pub reads_in_flight: u8,
}

/// Which side of a link a queue pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It reads, and lets its peer do nothing.
    Fetch,
    /// It lets its peer read what is registered for that in its protection domain.
    Serve,
}

/// Where a queue pair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// New.
    Reset,
    /// It has a port and rights.
    Init,
    /// It knows its peer, and answers.
    ReadyToReceive,
    /// It asks, too.
    ReadyToSend,
}

impl State {
    fn raw(self) -> ibv_qp_state::Type {
        match self {
            Self::Reset => ibv_qp_state::IBV_QPS_RESET,
            Self::Init => ibv_qp_state::IBV_QPS_INIT,
            Self::ReadyToReceive => ibv_qp_state::IBV_QPS_RTR,
            Self::ReadyToSend => ibv_qp_state::IBV_QPS_RTS,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "RESET",
            Self::Init => "INIT",
            Self::ReadyToReceive => "RTR",
            Self::ReadyToSend => "RTS",
        })
    }
}

/// One step of connecting, and the attributes that it takes: these and no others, by the specification's table.
pub(crate) struct Step {
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) mask: u32,
}

/// The way of a reliable connection from new to ready.
pub(crate) const STEPS: [Step; 3] = [
    Step {
        from: State::Reset,
        to: State::Init,
        mask: mask::IBV_QP_STATE.0
            | mask::IBV_QP_PKEY_INDEX.0
            | mask::IBV_QP_PORT.0
            | mask::IBV_QP_ACCESS_FLAGS.0,
    },
    Step {
        from: State::Init,
        to: State::ReadyToReceive,
        mask: mask::IBV_QP_STATE.0
            | mask::IBV_QP_AV.0
            | mask::IBV_QP_PATH_MTU.0
            | mask::IBV_QP_DEST_QPN.0
            | mask::IBV_QP_RQ_PSN.0
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC.0
            | mask::IBV_QP_MIN_RNR_TIMER.0,
    },
    Step {
        from: State::ReadyToReceive,
        to: State::ReadyToSend,
        mask: mask::IBV_QP_STATE.0
            | mask::IBV_QP_TIMEOUT.0
            | mask::IBV_QP_RETRY_CNT.0
            | mask::IBV_QP_RNR_RETRY.0
            | mask::IBV_QP_SQ_PSN.0
            | mask::IBV_QP_MAX_QP_RD_ATOMIC.0,
    },
];

/// 4.096 µs × 2^14 = 67 ms until a packet is sent again.
const TIMEOUT: u8 = 14;
/// How often: a dead peer is noticed after half a second. 7 is for ever on SoftRoCE.
const RETRIES: u8 = 6;
/// One-sided reads never find a receiver that is not ready; the specification wants the two all the same.
const RNR_RETRIES: u8 = 7;
const RNR_TIMER: u8 = 12;
/// Routers that a packet may pass.
const HOPS_MAX: u8 = 64;
/// Numbers of queue pairs and of packets are below it.
const LIMIT_24_BITS: u32 = 1 << 24;

/// All that any step takes: the step's mask picks.
///
/// `None` if the two ports have no packet size in common.
pub(crate) fn attributes(to: State, path: &Path, port: &Port, role: Role) -> Option<ibv_qp_attr> {
    // SAFETY: numbers, and unions of numbers, all of which may be zero.
    let mut all: ibv_qp_attr = unsafe { mem::zeroed() };
    all.qp_state = to.raw();
    all.port_num = path.own.port;
    all.qp_access_flags = match role {
        Role::Fetch => 0,
        Role::Serve => ibv_access_flags::IBV_ACCESS_REMOTE_READ.0,
    };
    all.path_mtu = mtu_of(path.peer.mtu_bytes.min(port.mtu_bytes))?;
    all.dest_qp_num = path.peer.qpn;
    all.rq_psn = path.peer.psn;
    all.sq_psn = path.own.psn;
    all.max_dest_rd_atomic = path.reads_in_flight;
    all.max_rd_atomic = path.reads_in_flight;
    all.min_rnr_timer = RNR_TIMER;
    all.timeout = TIMEOUT;
    all.retry_cnt = RETRIES;
    all.rnr_retry = RNR_RETRIES;
    all.ah_attr.port_num = path.own.port;
    all.ah_attr.dlid = path.peer.lid;
    if port.link == LinkLayer::Ethernet {
        all.ah_attr.is_global = 1;
        all.ah_attr.grh = ibv_global_route {
            dgid: ibv_gid { raw: path.peer.gid },
            flow_label: 0,
            sgid_index: path.own.gid_index,
            hop_limit: HOPS_MAX,
            traffic_class: 0,
        };
    }
    Some(all)
}

/// What the device knows about itself, to be held against a path.
pub(crate) struct Facts<'a> {
    pub(crate) port: &'a Port,
    pub(crate) limits: Limits,
    pub(crate) gids: &'a [Gid],
}

/// What of a path cannot be right for a step that failed, since all that a device says is EINVAL.
pub(crate) fn diagnose(to: State, path: &Path, facts: &Facts<'_>) -> String {
    let Path { peer, own, reads_in_flight } = path;
    let limit = facts.limits.reads_in_flight_max;
    let has_gid = facts.gids.iter().any(|gid| gid.port == own.port && gid.index == own.gid_index);
    let over_ethernet = facts.port.link == LinkLayer::Ethernet;
    let routed = to == State::ReadyToReceive;
    let suspects = [
        (!facts.port.is_active, format!("port {} is not active", own.port)),
        (routed && peer.qpn >= LIMIT_24_BITS, format!("{} is no number of a queue pair", peer.qpn)),
        (routed && peer.psn >= LIMIT_24_BITS, format!("{} is no number of a packet", peer.psn)),
        (
            to == State::ReadyToSend && own.psn >= LIMIT_24_BITS,
            format!("{} is no number of a packet", own.psn),
        ),
        (
            to != State::Init && *reads_in_flight > limit,
            format!("{reads_in_flight} reads in flight are more than the device's {limit}"),
        ),
        (
            routed && over_ethernet && !has_gid,
            format!("port {} has no address of index {}", own.port, own.gid_index),
        ),
        (routed && over_ethernet && peer.gid == [0; 16], "the peer has no GID".to_owned()),
        (routed && !over_ethernet && peer.lid == 0, "the peer has no LID".to_owned()),
    ];
    let found: Vec<String> = suspects.into_iter().filter_map(|(is_so, text)| is_so.then_some(text)).collect();
    if found.is_empty() {
        "the device does not say what is wrong with it".to_owned()
    } else {
        found.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GidKind;

    const PORT: Port =
        Port { number: 1, is_active: true, link: LinkLayer::Ethernet, mtu_bytes: 1024, lid: 0, mbit: None };
    const LIMITS: Limits =
        Limits { reads_in_flight_max: 16, mr_bytes_max: 0, cqe_max: 0, sends_max: 0, has_odp_read: false };

    fn path() -> Path {
        let peer = QpAddress { qpn: 17, psn: 5, gid: [1; 16], lid: 0, mtu_bytes: 4096 };
        Path { peer, own: OwnEnd { psn: 6, gid_index: 1, port: 1 }, reads_in_flight: 16 }
    }

    fn check(to: State, path: &Path, port: &Port, expect: &str) {
        let gid = Gid { raw: [2; 16], index: 1, port: 1, kind: GidKind::RoceV2, netdev: None };
        let said = diagnose(to, path, &Facts { port, limits: LIMITS, gids: &[gid] });
        assert_eq!(said, expect);
    }

    #[test]
    fn each_step_begins_where_the_last_one_ended() {
        assert_eq!(STEPS[0].from, State::Reset);
        assert_eq!(STEPS[2].to, State::ReadyToSend);
        for pair in STEPS.windows(2) {
            assert_eq!(pair[0].to, pair[1].from);
        }
    }

    #[test]
    fn masks_are_those_of_the_specification() {
        // As man ibv_modify_qp has them for reliable connections, by the bits of infiniband/verbs.h.
        let bits = |bits: &[u32]| bits.iter().fold(0, |all, bit| all | 1 << bit);
        assert_eq!(STEPS[0].mask, bits(&[0, 4, 5, 3]));
        assert_eq!(STEPS[1].mask, bits(&[0, 7, 8, 20, 12, 17, 15]));
        assert_eq!(STEPS[2].mask, bits(&[0, 9, 10, 11, 16, 13]));
    }

    #[test]
    fn only_who_serves_may_be_read_and_nobody_retries_for_ever() {
        let of = |role| attributes(State::Init, &path(), &PORT, role).expect("an MTU");
        assert_eq!(of(Role::Fetch).qp_access_flags, 0);
        assert_eq!(of(Role::Serve).qp_access_flags, ibv_access_flags::IBV_ACCESS_REMOTE_READ.0);
        assert!(of(Role::Fetch).retry_cnt <= 6, "7 is for ever on SoftRoCE");
        assert_eq!(of(Role::Fetch).path_mtu, rdma_sys::ibv_mtu::IBV_MTU_1024, "the smaller of the two");
    }

    #[test]
    fn what_cannot_be_right_is_named() {
        let mut wrong = path();
        check(State::ReadyToReceive, &wrong, &PORT, "the device does not say what is wrong with it");
        wrong.own.gid_index = 9;
        check(State::ReadyToReceive, &wrong, &PORT, "port 1 has no address of index 9");
        wrong.peer.gid = [0; 16];
        wrong.reads_in_flight = 17;
        check(
            State::ReadyToReceive,
            &wrong,
            &PORT,
            "17 reads in flight are more than the device's 16; port 1 has no address of index 9; the peer has no GID",
        );
        check(State::Init, &path(), &Port { is_active: false, ..PORT }, "port 1 is not active");
        let mut wide = path();
        wide.peer.qpn = 1 << 24;
        check(State::ReadyToReceive, &wide, &PORT, "16777216 is no number of a queue pair");
        let infiniband = Port { link: LinkLayer::InfiniBand, ..PORT };
        check(State::ReadyToReceive, &path(), &infiniband, "the peer has no LID");
    }
}
