//! `modelctl peer`: one process a node that stores, fetches and serves.
//!
//! Owns: its local socket, its start and end. Does not own: the artifacts it holds from before (`kept`), one client's
//! conversation (`clients`), a transfer (`transfer`), or how other processes reach it (`presence`).

use std::{
    fs::Permissions,
    io,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::PathBuf,
    sync::Arc,
};

use modelpack::reference::{LayoutReference, Reference};
use store::{NoReaders, Store};
use tokio::net::{UnixListener, UnixSocket};

use crate::{
    clients::Clients,
    descriptors,
    error::PeerError,
    fill::blocking,
    kept,
    leaving::Leaving,
    presence::{Address, Membership, Presence},
    security::PeerSecurity,
    seed,
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
    /// Where its control service listens; port 0 takes a free one. The data server takes a free port of the same
    /// address.
    pub listen: SocketAddr,
    /// The host by which others reach it, where that is not the address that it listens on.
    pub advertise: Option<String>,
    /// HOST:PORT of each scheduler, or of a name that has several addresses; none to be alone.
    pub schedulers: Vec<String>,
    /// What its network card does in each direction, in bytes per second, if known.
    pub nic_rate: Option<u64>,
    /// Its name for people.
    pub name: String,
    /// A layout whose artifact it announces: its bytes count as the origin's.
    pub seed: Option<LayoutReference>,
    /// How its connections to other processes are secured.
    pub security: PeerSecurity,
}

/// A peer that is ready: its sockets are open.
pub struct Peer {
    options: PeerOptions,
    store: Arc<Store>,
    presence: Presence,
    clients: UnixListener,
}

impl Peer {
    /// Opens the store and every socket, and proves what is to be announced, byte by byte. Nobody is served before
    /// [`Peer::run`].
    pub async fn start(options: PeerOptions) -> Result<Self, PeerError> {
        descriptors::allow_many();
        let (dir, store_max) = (options.store.clone(), options.store_max);
        let opened = blocking(move || {
            let store = Store::open(&dir)?.with_budget(store_max);
            // Nobody serves anything yet.
            store.collect(&NoReaders)?;
            Ok::<_, PeerError>(store)
        });
        let store = Arc::new(opened.await?);
        let address = Address { listen: options.listen, advertise: options.advertise.clone() };
        let presence = Presence::open(address, options.security.clone()).await?;
        let clients = listen_locally(&options)?;
        let node = presence.node();
        kept::offer(&store, node).await?;
        // After the store: a seed's share has the piece trees, and its bytes count as the origin's.
        if let Some(layout) = options.seed.clone() {
            seed::announce(node, Reference::Layout(layout)).await?;
        }
        Ok(Self { options, store, presence, clients })
    }

    /// Where its control service listens.
    pub fn listening(&self) -> SocketAddr {
        self.presence.listening()
    }

    /// Serves until `shutdown` is ready; then the socket is removed, running pulls are told so, and children are told to
    /// go elsewhere.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<Leaving, PeerError> {
        let Self { options, store, presence, clients } = self;
        let PeerOptions { schedulers, name, nic_rate, .. } = options.clone();
        let membership = Membership { schedulers: schedulers.clone(), name, nic_rate };
        let mut present = presence.begin((!schedulers.is_empty()).then_some(membership));
        let conversations = Clients::new(Arc::clone(present.node()), store, schedulers);
        let leaves = present.children().told();
        present.spawn(conversations.serve(clients, leaves));
        shutdown.await;
        remove_socket(&options.socket);
        Ok(present.leave())
    }
}

/// Listens on the local socket, which only its owner may use. A socket that nobody answers on is left from a process
/// that died, and is replaced.
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
    std::fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(failed)?;
    bound.listen(BACKLOG).map_err(failed)
}

fn remove_socket(socket: &std::path::Path) {
    use std::os::unix::fs::FileTypeExt as _;
    let is_socket = socket.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && let Err(error) = std::fs::remove_file(socket) {
        tracing::warn!(socket = %socket.display(), %error, "the socket cannot be removed");
    }
}
