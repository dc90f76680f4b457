//! What any process of a fleet has, a daemon or a pull that takes part by itself: its control service, its data server
//! and its stream to the scheduler.
//!
//! Owns: opening the sockets, the tasks behind them and their end. Does not own: what is shared (`node`), or what the
//! process does besides.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::Arc,
};

use identity::ReaderKey;
use planner::Place;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinSet,
};
use transport::{Exports, tcp};
use wire::schedulers::Schedulers;

use crate::{
    children::Children,
    error::PeerError,
    fill::blocking,
    leaving::Leaving,
    limit::{Counters, Limit},
    meter::{Meter, Sending, Told},
    metrics::Watch,
    node::Node,
    service::{self, GRANT_EXPIRY, ServiceOptions, Shares},
    session::{Session, SessionOptions},
    transports::Means,
};

/// Where a process listens and how it is reached.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    /// Of the control service; port 0 takes a free one. The data server takes a free port of the same address.
    pub(crate) listen: SocketAddr,
    /// The host by which others reach it, where that is not the address that it listens on.
    pub(crate) advertise: Option<String>,
}

/// As what a process is known to its scheduler.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    /// HOST:PORT of each scheduler, or of a name that has several addresses.
    pub(crate) schedulers: Vec<String>,
    /// Its name for people.
    pub(crate) name: String,
    /// What its network card does in each direction, in bytes per second, if known.
    pub(crate) nic_rate: Option<u64>,
    /// Where it stands.
    pub(crate) place: Place,
}

/// Open sockets, on which nobody is served yet.
pub(crate) struct Presence {
    address: Address,
    control: TcpListener,
    control_addr: SocketAddr,
    data: tcp::Server,
    node: Arc<Node>,
}

impl Presence {
    /// Opens the sockets of a process with a new identity.
    pub(crate) async fn open(address: Address, means: Means) -> Result<Self, PeerError> {
        let listen = |source| PeerError::Listen { address: address.listen.to_string(), source };
        let control = TcpListener::bind(address.listen).await.map_err(listen)?;
        let control_addr = control.local_addr().map_err(listen)?;
        let exports = Exports::new();
        let at = SocketAddr::new(address.listen.ip(), 0);
        let data =
            tcp::Server::bind(at, exports.clone(), means.security.data.clone()).await.map_err(listen)?;
        if let Some(limit) = means.transports.limit() {
            data.keep_to(Arc::clone(limit.sent()));
        }
        let key = ReaderKey::generate().map_err(|error| listen(io::Error::other(error)))?;
        let node = blocking(move || Node::new(key, means, exports)).await?;
        Ok(Self { address, control, control_addr, data, node })
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Where its control service listens.
    pub(crate) fn listening(&self) -> SocketAddr {
        self.control_addr
    }

    /// Serves from now on, as a member of that scheduler's fleet if there is one.
    pub(crate) fn begin(self, membership: Option<Membership>) -> Present {
        let (me, control_address) = (self.node.me(), self.advertised());
        let Means { security, transports } = self.node.means().clone();
        let children = Children::none();
        let (stop, stopped) = watch::channel(());
        let mut present = Present {
            node: self.node,
            children: children.clone(),
            data: self.data.clone(),
            stop,
            stopped,
            tasks: JoinSet::new(),
            guests: JoinSet::new(),
        };
        let limit = transports.limit().and_then(Limit::told);
        let told = Told { card: membership.as_ref().and_then(|at| at.nic_rate), limit };
        let rate = |nic_rate| transports.rate(nic_rate);
        let membership = membership.map(|at| Membership { nic_rate: rate(at.nic_rate), ..at });
        let options = ServiceOptions {
            me,
            security: security.clone(),
            tcp: self.data.clone(),
            transports: transports.clone(),
            data_address: self.data.local_addr().to_string(),
            grant_expiry: GRANT_EXPIRY,
            children,
        };
        let shares = Arc::clone(&present.node) as Arc<dyn Shares>;
        let serving = service::serve(self.control, shares, options, present.stopped());
        present.tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(error = &error as &dyn std::error::Error, "the control service ended");
            }
        });
        if let Some(Membership { schedulers, name, nic_rate, place }) = membership {
            let (events, inbox) = mpsc::unbounded_channel();
            let security = security.control;
            let schedulers = Schedulers::new(&security, schedulers);
            let session = SessionOptions { schedulers, me, control_address, name, nic_rate, place, security };
            present.node.set_session(Session::spawn(session, events));
            let sending = Sending { server: self.data.clone(), children: present.children.clone() };
            // Where none is in sight, what others move is not known.
            let meter = Meter::new(&present.node, sending, Counters::find(Path::new("/")).ok(), told);
            present.tasks.spawn(Arc::clone(&present.node).follow_session(inbox, meter));
        }
        let until = present.stopped();
        present.tasks.spawn(async move { self.data.run(until).await });
        present
    }

    /// HOST:PORT of the control service, as others reach it.
    fn advertised(&self) -> String {
        match &self.address.advertise {
            // As in a URI, an IPv6 address stands in brackets.
            Some(host) if host.contains(':') && !host.starts_with('[') => {
                format!("[{host}]:{}", self.control_addr.port())
            }
            Some(host) => format!("{host}:{}", self.control_addr.port()),
            None => self.control_addr.to_string(),
        }
    }
}

/// A process that serves. Dropping it ends that without a word to anybody.
pub(crate) struct Present {
    node: Arc<Node>,
    children: Children,
    data: tcp::Server,
    /// Dropped to say that it is over.
    stop: watch::Sender<()>,
    stopped: watch::Receiver<()>,
    tasks: JoinSet<()>,
    /// Those that end by themselves when it leaves.
    guests: JoinSet<()>,
}

impl Present {
    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Those who hold a grant.
    pub(crate) fn children(&self) -> &Children {
        &self.children
    }

    /// Shows its numbers there until it ends, also while it leaves.
    pub(crate) fn show_on(&mut self, face: TcpListener) {
        let (node, children, data) = (Arc::clone(&self.node), self.children.clone(), self.data.clone());
        let (watch, stopped) = (Arc::new(Watch { node, children, data }), self.stopped());
        self.tasks.spawn(async move {
            tokio::select! {
                never = telemetry::serve(face, watch) => match never {},
                () = stopped => {}
            }
        });
    }

    /// Ready when it ends, be it by a drop.
    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stopped = self.stopped.clone();
        // Ends with an error when the sender is dropped, which is the signal.
        async move { while stopped.changed().await.is_ok() {} }
    }

    /// Runs beside the rest. It is to end by itself when this process leaves, and is waited for like children.
    pub(crate) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.guests.spawn(task);
    }

    /// Ready when nobody holds a grant, and what was spawned has ended.
    pub(crate) async fn drained(&mut self) {
        self.children.gone().await;
        while self.guests.join_next().await.is_some() {}
    }

    /// Lets nobody new in, and tells the scheduler, which plans without this process from then on, and children, which
    /// ask for nothing more. Reads under way are served on.
    pub(crate) fn leave(self) -> Leaving {
        self.node.leave();
        self.children.say_farewell();
        Leaving::new(self)
    }

    /// Ends now.
    pub(crate) async fn end(self) {
        let Self { stop, mut tasks, .. } = self;
        drop(stop);
        tasks.shutdown().await;
    }
}

/// The address by which this machine speaks with a scheduler at HOST:PORT: by it other machines of the fleet most
/// likely reach this one. `None` where there is no way to it. Nothing is sent, so that it need not be there.
pub async fn address_towards(scheduler: &str) -> Option<IpAddr> {
    let found = tokio::net::lookup_host(scheduler).await.ok()?.collect::<Vec<_>>();
    blocking(move || {
        found.into_iter().find_map(|to| {
            let any: IpAddr =
                if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0)).ok()?;
            // Only chooses the way (connect(2)): a datagram socket greets nobody.
            socket.connect(to).ok()?;
            socket.local_addr().ok().map(|address| address.ip())
        })
    })
    .await
}
