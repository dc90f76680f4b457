//! `modelctl peer`: one process a node that stores, fetches and serves.
//!
//! Owns: its local socket, its start and end. Does not own: the artifacts it holds from before (`kept`), one client's
//! conversation (`clients`), a transfer (`transfer`), or how other processes reach it (`presence`).

use std::{
    fs::Permissions,
    io,
    net::SocketAddr,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        net::UnixStream,
    },
    path::PathBuf,
    sync::Arc,
};

use modelpack::digest::Sha256Digest;
use planner::Place;
use store::{NoReaders, Store};
use tokio::net::{TcpListener, UnixListener, UnixSocket};

use crate::{
    clients::Clients,
    delta::Delta,
    descriptors,
    error::PeerError,
    fill::blocking,
    kept,
    leaving::Leaving,
    mirror::MirrorOptions,
    presence::{Address, Membership, Presence},
    security::PeerSecurity,
    seed::{self, Seed},
    sinks::LandingMode,
    transports::{Means, Transports},
};

/// Clients that wait to be accepted.
const BACKLOG: u32 = 128;

/// How a peer is set up.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// The directory of its store.
    pub store: PathBuf,
    /// How many bytes it may hold; none to remove nothing.
    pub store_max: Option<u64>,
    /// The socket that clients on this machine use.
    pub socket: PathBuf,
    /// The group whose members may use it, too.
    pub socket_group: Option<u32>,
    /// Where its control service listens; port 0 takes a free one. The data server takes a free port of the same
    /// address.
    pub listen: SocketAddr,
    /// The host by which others reach it, where that is not the address that it listens on.
    pub advertise: Option<String>,
    /// HOST:PORT of each scheduler, or of a name that has several addresses; none to be alone.
    pub schedulers: Vec<String>,
    /// What its network card does in each direction, in bytes per second, if known.
    pub nic_rate: Option<u64>,
    /// Where it stands.
    pub place: Place,
    /// Its name for people.
    pub name: String,
    /// What it announces: the bytes count as the origin's.
    pub seeds: Vec<Seed>,
    /// How its connections to other processes are secured.
    pub security: PeerSecurity,
    /// By what bytes move between it and others.
    pub transports: Transports,
    /// How bytes of other peers land in its store.
    pub landing: LandingMode,
    /// Whether it takes what it has of older versions.
    pub delta: Delta,
}

/// A peer that is ready: its sockets are open.
pub struct Peer {
    options: PeerOptions,
    store: Arc<Store>,
    presence: Presence,
    clients: UnixListener,
    /// Where it shows its numbers, if anywhere.
    face: Option<TcpListener>,
    /// Where it stands in for which registries, if anywhere.
    mirror: Option<MirrorOptions>,
    announced: Vec<(String, Sha256Digest)>,
}

impl Peer {
    /// Opens the store and every socket, and proves what is to be announced, byte by byte. Nobody is served before
    /// [`Peer::run`].
    pub async fn start(options: PeerOptions) -> Result<Self, PeerError> {
        descriptors::allow_many();
        options.landing.check(&options.store)?;
        let (dir, store_max) = (options.store.clone(), options.store_max);
        let opened = blocking(move || Store::open(&dir));
        let store = Arc::new(opened.await?.with_budget(store_max));
        let mut seeds = Vec::new();
        for seed in options.seeds.clone() {
            seeds.push(seed::prepare(seed, &store).await?);
        }
        // After what is announced from the store is pinned, and while nobody serves anything.
        let collector = Arc::clone(&store);
        blocking(move || collector.collect(&NoReaders)).await?;
        let address = Address { listen: options.listen, advertise: options.advertise.clone() };
        let means = Means { security: options.security.clone(), transports: options.transports.clone() };
        let presence = Presence::open(address, means).await?;
        let clients = listen_locally(&options)?;
        let node = presence.node();
        kept::offer(&store, node).await?;
        // After the store: a seed's share has the piece trees, and its bytes count as the origin's.
        let mut announced = Vec::new();
        for seed in seeds {
            announced.push((seed.artifact.reference.clone(), seed.artifact.manifest.digest()));
            node.seed(seed);
        }
        Ok(Self { options, store, presence, clients, face: None, mirror: None, announced })
    }

    /// Shows `/metrics` and `/healthz` there while it runs, to anybody who can reach it.
    #[must_use]
    pub fn show_on(self, face: TcpListener) -> Self {
        Self { face: Some(face), ..self }
    }

    /// Stands in for registries while it runs.
    #[must_use]
    pub fn mirror(self, options: MirrorOptions) -> Self {
        Self { mirror: Some(options), ..self }
    }

    /// Where its control service listens.
    pub fn listening(&self) -> SocketAddr {
        self.presence.listening()
    }

    /// What it announces, each by its own name for it and by its digest.
    pub fn announced(&self) -> &[(String, Sha256Digest)] {
        &self.announced
    }

    /// Serves until `shutdown` is ready; then the socket is removed, running pulls are told so, and children are told to
    /// go elsewhere.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<Leaving, PeerError> {
        let Self { options, store, presence, clients, face, mirror, announced: _ } = self;
        // Before anybody is served: what is wrong with a registry's name or certificates is said at once.
        let mirror = mirror.map(MirrorOptions::open).transpose()?;
        let PeerOptions { schedulers, name, nic_rate, place, .. } = options.clone();
        let membership = Membership { schedulers: schedulers.clone(), name, nic_rate, place };
        let mut present = presence.begin((!schedulers.is_empty()).then_some(membership));
        if let Some(face) = face {
            present.show_on(face);
        }
        let how = (options.landing, options.delta);
        let conversations = Clients::new(Arc::clone(present.node()), store, schedulers, how);
        if let Some(mirror) = mirror {
            mirror.begin(&conversations, &mut present);
        }
        let leaves = present.children().told();
        present.spawn(conversations.serve(clients, leaves));
        shutdown.await;
        present.node().metrics().leaves();
        remove_socket(&options.socket);
        Ok(present.leave())
    }
}

/// Listens on the local socket, which only its owner may use, and the members of its group if it has one. A socket
/// that nobody answers on is left from a process that died, and is replaced.
fn listen_locally(options: &PeerOptions) -> Result<UnixListener, PeerError> {
    let socket = &options.socket;
    let failed = |source| PeerError::Listen { address: socket.display().to_string(), source };
    if UnixStream::connect(socket).is_ok() {
        return Err(failed(io::Error::new(io::ErrorKind::AddrInUse, "another peer answers there")));
    }
    remove_socket(socket);
    if let Some(parent) = socket.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let bound = UnixSocket::new_stream().map_err(failed)?;
    bound.bind(socket).map_err(failed)?;
    // Before it listens nobody can connect, so that there is no moment in which others may.
    let mode = if let Some(group) = options.socket_group {
        chown(socket, None, Some(group)).map_err(|error| failed(not_given(group, &error)))?;
        0o660
    } else {
        0o600
    };
    std::fs::set_permissions(socket, Permissions::from_mode(mode)).map_err(failed)?;
    bound.listen(BACKLOG).map_err(failed)
}

fn not_given(group: u32, error: &io::Error) -> io::Error {
    let why = format!(
        "it cannot be given to group {group}, which only root and that group's members may do: {error}"
    );
    io::Error::new(error.kind(), why)
}

fn remove_socket(socket: &std::path::Path) {
    use std::os::unix::fs::FileTypeExt as _;
    let is_socket = socket.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && let Err(error) = std::fs::remove_file(socket) {
        tracing::warn!(socket = %socket.display(), %error, "the socket cannot be removed");
    }
}
