//! What the two sides of a link over RDMA tell each other, as lines of JSON on a TCP connection.
//!
//! Owns: the messages and their form. Does not own: what is made of them. It is for measuring: nobody proves who it is.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use transport_rdma::{Endpoint, Network, Probe, RemoteWindow};

/// Longest line: the piece tree of the largest file, and room.
const LINE_BYTES_MAX: u64 = 64 << 20;

/// How long the other side may take for an answer: far longer than it takes to pin a file.
const PATIENCE: Duration = Duration::from_mins(5);

/// A connection to the other side.
pub(super) struct Exchange {
    stream: BufReader<TcpStream>,
}

impl Exchange {
    pub(super) fn new(stream: TcpStream) -> anyhow::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub(super) fn say<T: Serialize>(&mut self, what: &T) -> anyhow::Result<()> {
        let line = serde_json::to_string(what)? + "\n";
        Ok(self.stream.get_mut().write_all(line.as_bytes())?)
    }

    /// The next message; an error if the other side has gone.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        self.stream.by_ref().take(LINE_BYTES_MAX).read_line(&mut line)?;
        ensure!(!line.is_empty(), "the other side has gone");
        serde_json::from_str(&line).with_context(|| "the other side is no `bench` of this version")
    }
}

/// The receiver begins.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) endpoints: Vec<WireEndpoint>,
}

/// The sender answers, or says why there is no link.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Welcome(Welcome),
    Refusal(String),
}

/// All that the receiver needs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Welcome {
    pub(super) endpoints: Vec<WireEndpoint>,
    pub(super) probe: WireProbe,
    pub(super) bytes: u64,
    pub(super) handle: u64,
    pub(super) windows: Vec<WireWindow>,
    /// The root, then the values of the piece tree, in hex.
    pub(super) tree: String,
}

/// The receiver is done.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Done;

/// What the link cost the sender.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Cost {
    pub(super) cpu_s: f64,
}

/// An [`Endpoint`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireEndpoint {
    rail: u32,
    qpn: u32,
    psn: u32,
    gid: [u8; 16],
    lid: u16,
    mtu_bytes: u32,
    network: u32,
    reads_in_flight_max: u8,
}

/// A [`Probe`].
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct WireProbe {
    address: u64,
    rkeys: Vec<u32>,
    value: [u8; 32],
}

/// A [`RemoteWindow`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WireWindow {
    index: u32,
    address: u64,
    bytes: u64,
    rkeys: Vec<u32>,
}

impl From<Endpoint> for WireEndpoint {
    fn from(endpoint: Endpoint) -> Self {
        let Endpoint { rail, qpn, psn, gid, lid, mtu_bytes, network, reads_in_flight_max } = endpoint;
        Self { rail, qpn, psn, gid, lid, mtu_bytes, network: network.number(), reads_in_flight_max }
    }
}

impl TryFrom<WireEndpoint> for Endpoint {
    type Error = anyhow::Error;

    fn try_from(endpoint: WireEndpoint) -> anyhow::Result<Self> {
        let WireEndpoint { rail, qpn, psn, gid, lid, mtu_bytes, network, reads_in_flight_max } = endpoint;
        let network = Network::from_number(network).context("a network that this version does not know")?;
        Ok(Self { rail, qpn, psn, gid, lid, mtu_bytes, network, reads_in_flight_max })
    }
}

impl From<Probe> for WireProbe {
    fn from(Probe { address, rkeys, value }: Probe) -> Self {
        Self { address, rkeys, value }
    }
}

impl From<WireProbe> for Probe {
    fn from(WireProbe { address, rkeys, value }: WireProbe) -> Self {
        Self { address, rkeys, value }
    }
}

impl From<RemoteWindow> for WireWindow {
    fn from(RemoteWindow { index, address, bytes, rkeys }: RemoteWindow) -> Self {
        Self { index, address, bytes, rkeys }
    }
}

impl From<WireWindow> for RemoteWindow {
    fn from(WireWindow { index, address, bytes, rkeys }: WireWindow) -> Self {
        Self { index, address, bytes, rkeys }
    }
}

/// The endpoints of a message.
pub(super) fn endpoints(of: Vec<WireEndpoint>) -> anyhow::Result<Vec<Endpoint>> {
    of.into_iter().map(Endpoint::try_from).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (Exchange, Exchange) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (there, _) = listener.accept().unwrap();
        (Exchange::new(here).unwrap(), Exchange::new(there).unwrap())
    }

    #[test]
    fn endpoints_arrive_as_they_were() {
        let endpoint = Endpoint {
            rail: 1,
            qpn: 17,
            psn: 0xff_ffff,
            gid: [7; 16],
            lid: 3,
            mtu_bytes: 4096,
            network: Network::RoceIpv4,
            reads_in_flight_max: 16,
        };
        let (mut here, mut there) = pair();
        here.say(&Hello { endpoints: vec![endpoint.clone().into()] }).unwrap();
        let hello: Hello = there.hear().unwrap();
        assert_eq!(endpoints(hello.endpoints).unwrap(), [endpoint]);
    }

    #[test]
    fn who_goes_or_speaks_otherwise_is_told() {
        let (mut here, mut there) = pair();
        here.say(&"hello").unwrap();
        assert!(there.hear::<Hello>().unwrap_err().to_string().contains("of this version"));
        drop(here);
        assert!(there.hear::<Hello>().unwrap_err().to_string().contains("has gone"));
    }
}
