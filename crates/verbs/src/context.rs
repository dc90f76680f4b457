//! An open device: what it can do, its ports, its addresses. Does not own: anything made on it.

use std::{fmt, fs, io, sync::Arc};

use rdma_sys::{ibv_context, ibv_gid, ibv_gid_entry, ibv_mtu, ibv_odp_transport_cap_bits, ibv_port_state};
use rustix::io::Errno;
use sideway::ibverbs::device_context::{DeviceAttr, DeviceContext, QueryDeviceErrorKind, QueryPortErrorKind};

use crate::{VerbsError, device, error};

/// An open device. Everything made on it holds it.
pub struct Context {
    inner: Arc<DeviceContext>,
    name: String,
    attributes: DeviceAttr,
}

/// What a device bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One-sided reads that a queue pair may have in flight, both as who asks and as who answers.
    pub reads_in_flight_max: u8,
    /// Bytes of one registration, as advertised; SoftRoCE bears less than it says.
    pub mr_bytes_max: u64,
    /// Entries of one completion queue.
    pub cqe_max: u32,
    /// Work requests that a queue pair may have posted.
    pub sends_max: u32,
    /// Whether a read may land in memory that is not pinned (ODP).
    pub has_odp_read: bool,
}

/// What carries the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// RoCE: addresses are GIDs.
    Ethernet,
    /// InfiniBand: addresses are LIDs.
    InfiniBand,
}

/// One port of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Counted from one.
    pub number: u8,
    /// Whether packets can go out.
    pub is_active: bool,
    /// What carries them.
    pub link: LinkLayer,
    /// The largest packet's payload now. A path with a larger one loses packets silently.
    pub mtu_bytes: u32,
    /// Its address on InfiniBand, else 0.
    pub lid: u16,
    /// Its speed, if it is one that we know.
    pub mbit: Option<u64>,
}

/// What a GID stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GidKind {
    /// An address of InfiniBand.
    InfiniBand,
    /// RoCE right on Ethernet: cannot be routed.
    RoceV1,
    /// RoCE on UDP: an IPv6 address, or an IPv4 address mapped into one.
    RoceV2,
}

/// One entry of a port's address table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gid {
    /// The address.
    pub raw: [u8; 16],
    /// Where it is in the port's table.
    pub index: u8,
    /// Whose it is.
    pub port: u8,
    /// What it stands for.
    pub kind: GidKind,
    /// The network device that it is an address of, if any.
    pub netdev: Option<String>,
}

impl Context {
    /// Opens a device.
    ///
    /// # Errors
    /// [`VerbsError::Unavailable`] and [`VerbsError::NoSuchDevice`]; EACCES or EPERM without the right to; ENODEV if it
    /// has gone.
    pub fn open(name: &str) -> Result<Arc<Self>, VerbsError> {
        let inner = device::open(name)?;
        let attributes = inner.query_device().map_err(|error| match error.0 {
            QueryDeviceErrorKind::Ibverbs(source) => VerbsError::verb("ibv_query_device_ex", name, source),
            other => VerbsError::verb("ibv_query_device_ex", name, io::Error::other(other)),
        })?;
        Ok(Arc::new(Self { inner, name: name.to_owned(), attributes }))
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it bears.
    pub fn limits(&self) -> Limits {
        let attributes = &self.attributes.attr.orig_attr;
        let count = |limit: i32| u32::try_from(limit).unwrap_or(0);
        let reads = attributes.max_qp_rd_atom.min(attributes.max_qp_init_rd_atom);
        let on_demand = self.attributes.attr.odp_caps.per_transport_caps.rc_odp_caps;
        Limits {
            reads_in_flight_max: u8::try_from(reads.clamp(0, i32::from(u8::MAX))).unwrap_or(u8::MAX),
            mr_bytes_max: attributes.max_mr_size,
            cqe_max: count(attributes.max_cqe),
            sends_max: count(attributes.max_qp_wr),
            has_odp_read: on_demand & ibv_odp_transport_cap_bits::IBV_ODP_SUPPORT_READ.0 != 0,
        }
    }

    /// The numbers of its ports.
    pub fn ports(&self) -> impl Iterator<Item = u8> + use<> {
        1..=self.attributes.attr.orig_attr.phys_port_cnt
    }

    /// How a port is now.
    ///
    /// # Errors
    /// EINVAL for a port that it has not, EIO or ENODEV if it has gone.
    pub fn port(&self, number: u8) -> Result<Port, VerbsError> {
        Ok(self.query_port(number)?.0)
    }

    /// A port, and the length of its address table.
    fn query_port(&self, number: u8) -> Result<(Port, u32), VerbsError> {
        let attributes = self.inner.query_port(number).map_err(|error| match error.source {
            QueryPortErrorKind::Ibverbs(source) => VerbsError::verb("ibv_query_port", &self.name, source),
            other => VerbsError::verb("ibv_query_port", &self.name, io::Error::other(other)),
        })?;
        let raw = &attributes.attr;
        let port = Port {
            number,
            is_active: raw.state == ibv_port_state::IBV_PORT_ACTIVE,
            link: if raw.link_layer == LINK_LAYER_ETHERNET {
                LinkLayer::Ethernet
            } else {
                LinkLayer::InfiniBand
            },
            mtu_bytes: mtu_bytes(raw.active_mtu),
            lid: raw.lid,
            mbit: mbit(raw.active_width, raw.active_speed),
        };
        Ok((port, u32::try_from(raw.gid_tbl_len).unwrap_or(0)))
    }

    /// Its addresses, in the order of its ports' tables.
    ///
    /// # Errors
    /// EOPNOTSUPP if the library is older than rdma-core 32, EIO or ENODEV if the device has gone.
    pub fn gids(&self) -> Result<Vec<Gid>, VerbsError> {
        let mut gids = Vec::new();
        for port in self.ports() {
            // What is beyond the 256th cannot be named in an address handle.
            for index in 0..u8::try_from(self.query_port(port)?.1).unwrap_or(u8::MAX) {
                match self.gid(port, index) {
                    Ok(Some(gid)) => gids.push(gid),
                    Ok(None) => {}
                    Err(source) => return Err(VerbsError::verb("ibv_query_gid_ex", &self.name, source)),
                }
            }
        }
        Ok(gids)
    }

    /// One entry of a port's table, if it is not empty.
    fn gid(&self, port: u8, index: u8) -> io::Result<Option<Gid>> {
        let mut entry = ibv_gid_entry {
            gid: ibv_gid { raw: [0; 16] },
            gid_index: 0,
            port_num: 0,
            gid_type: 0,
            ndev_ifindex: 0,
        };
        // SAFETY: the context is open while `self` is, and `entry` is one whole entry to write to.
        let answer =
            unsafe { rdma_sys::ibv_query_gid_ex(self.raw(), port.into(), index.into(), &raw mut entry, 0) };
        match error::check(answer) {
            Ok(()) => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODATA) => return Ok(None),
            Err(error) => return Err(error),
        }
        // SAFETY: every member of the union is sixteen bytes of which any value is valid.
        let raw = unsafe { entry.gid.raw };
        let kind = match entry.gid_type {
            rdma_sys::IBV_GID_TYPE_IB => GidKind::InfiniBand,
            rdma_sys::IBV_GID_TYPE_ROCE_V1 => GidKind::RoceV1,
            rdma_sys::IBV_GID_TYPE_ROCE_V2 => GidKind::RoceV2,
            // Of a kind that this version cannot speak to.
            _ => return Ok(None),
        };
        let netdev = format!("/sys/class/infiniband/{}/ports/{port}/gid_attrs/ndevs/{index}", self.name);
        let netdev = fs::read_to_string(netdev).ok().map(|name| name.trim().to_owned());
        Ok((raw != [0; 16]).then_some(Gid { raw, index, port, kind, netdev }))
    }

    /// What sideway knows it as.
    pub(crate) fn inner(&self) -> &Arc<DeviceContext> {
        &self.inner
    }

    /// What libibverbs knows it as: open for as long as `self` is.
    pub(crate) fn raw(&self) -> *mut ibv_context {
        // SAFETY: those who use the pointer see to it that the context outlives that, by the `Arc` they hold.
        unsafe { self.inner.context() }.as_ptr()
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context({})", self.name)
    }
}

/// `IBV_LINK_LAYER_ETHERNET`, which the bindings leave out.
const LINK_LAYER_ETHERNET: u8 = 2;

/// 128 × 2^n, as the specification counts; 0 for what it does not know.
fn mtu_bytes(mtu: ibv_mtu::Type) -> u32 {
    if (ibv_mtu::IBV_MTU_256..=ibv_mtu::IBV_MTU_4096).contains(&mtu) { 128 << mtu } else { 0 }
}

/// The largest MTU of the specification that is not above `bytes`.
pub(crate) fn mtu_of(bytes: u32) -> Option<ibv_mtu::Type> {
    (ibv_mtu::IBV_MTU_256..=ibv_mtu::IBV_MTU_4096).rev().find(|mtu| mtu_bytes(*mtu) <= bytes)
}

/// From the specification's codes of lanes and of their speed, after encoding.
fn mbit(width: u8, speed: u8) -> Option<u64> {
    let lanes = match width {
        1 => 1,
        2 => 4,
        4 => 8,
        8 => 12,
        16 => 2,
        _ => return None,
    };
    let lane = match speed {
        1 => 2_000,
        2 => 4_000,
        4 => 8_000,
        8 => 10_000,
        16 => 13_640,
        32 => 25_000,
        64 => 50_000,
        128 => 100_000,
        _ => return None,
    };
    Some(lanes * lane)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtus_are_those_of_the_specification() {
        let bytes: Vec<u32> = (0..7).map(mtu_bytes).collect();
        assert_eq!(bytes, [0, 256, 512, 1024, 2048, 4096, 0]);
        assert_eq!(mtu_of(1500), Some(ibv_mtu::IBV_MTU_1024));
        assert_eq!(mtu_of(4096), Some(ibv_mtu::IBV_MTU_4096));
        assert_eq!(mtu_of(9000), Some(ibv_mtu::IBV_MTU_4096));
        assert_eq!(mtu_of(255), None);
    }

    #[test]
    fn speeds_of_ports() {
        assert_eq!(mbit(2, 32), Some(100_000));
        assert_eq!(mbit(2, 128), Some(400_000));
        assert_eq!(mbit(1, 1), Some(2_000));
        // Codes of cards yet to be made are no reason to panic.
        assert_eq!(mbit(2, 3), None);
        assert_eq!(mbit(200, 1), None);
    }
}
