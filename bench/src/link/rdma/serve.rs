//! The sending side of a link over RDMA: a process that lets one receiver after another read a file.
//!
//! Owns: the file, what is registered of it, who reads. Does not own: the engine (crate `transport-rdma`).

use std::{
    fs::File,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use anyhow::Context as _;
use clap::Args;
use modelpack::quantity::Size;
use rustix::fs::{MemfdFlags, memfd_create};
use transport_rdma::{Rdma, Serving, Source};

use super::{
    Serves, ShapeArgs,
    exchange::{Answer, Cost, Done, Exchange, Hello, Welcome, endpoints},
};
use crate::{
    link::{check_size, cpu_seconds, say, write_noise},
    output::tell,
};

/// The name of the file in reads.
const HANDLE: u64 = 1;

/// Serve a file in memory over RDMA to `bench link --transport rdma --from ADDR` on another machine
///
/// The first line on stdout says where it listens, over TCP, for receivers that say hello. Everybody who can connect
/// there can read the file, which is noise. It ends at SIGTERM.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Where receivers say hello
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:0")]
    listen: SocketAddr,
    /// The size of the file
    #[arg(long, default_value = "1GiB")]
    size: Size,
    /// End when stdin does
    #[arg(long)]
    until_stdin_ends: bool,
    #[command(flatten)]
    shape: ShapeArgs,
}

/// What is served.
struct Served {
    rdma: Rdma,
    source: Arc<Source>,
    bytes: u64,
    tree: String,
}

/// Serves until it is told to end.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    check_size(args.size)?;
    let rdma = args.shape.open()?;
    let served = Served::new(rdma, args.size.0)?;
    let listener =
        TcpListener::bind(args.listen).with_context(|| format!("cannot listen on {}", args.listen))?;
    say(&Serves { address: listener.local_addr()? })?;
    let accept = thread::spawn(move || -> anyhow::Result<()> {
        loop {
            let (stream, from) = listener.accept()?;
            // One after the other: two would measure each other.
            if let Err(error) = served.serve(stream) {
                tell(&format!("receiver {from}: {error:#}"));
            }
        }
    });
    if args.until_stdin_ends {
        // Whatever comes is for nobody; an error is an end, too.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        return Ok(());
    }
    accept.join().ok().context("the listening thread panicked")?
}

impl Served {
    fn new(rdma: Rdma, bytes: u64) -> anyhow::Result<Self> {
        let file = memfd_create("bench", MemfdFlags::CLOEXEC).context("there is no memory for the file")?;
        let mut file = File::from(file);
        let tree = write_noise(&mut file, bytes)?;
        let source = Source::new(&rdma, Arc::new(file), bytes, HANDLE);
        source.readable(0..bytes)?;
        Ok(Self { rdma, source, bytes, tree: hex::encode(tree) })
    }

    /// Lets one receiver read until it says that it is done.
    fn serve(&self, stream: TcpStream) -> anyhow::Result<()> {
        let mut exchange = Exchange::new(stream)?;
        let hello: Hello = exchange.hear()?;
        let (serving, welcome) = match self.welcome(hello) {
            Ok(welcome) => welcome,
            Err(error) => return exchange.say(&Answer::Refusal(format!("{error:#}"))),
        };
        exchange.say(&Answer::Welcome(welcome))?;
        // What the machine does to pin the file is not the link's cost.
        let before = cpu_seconds();
        let Done = exchange.hear()?;
        exchange.say(&Cost { cpu_s: cpu_seconds() - before })?;
        drop(serving);
        Ok(())
    }

    fn welcome(&self, hello: Hello) -> anyhow::Result<(Serving, Welcome)> {
        let serving = self.rdma.serve(&endpoints(hello.endpoints)?)?;
        let windows = (0..self.source.windows()).map(|index| Ok(serving.window(&self.source, index)?.into()));
        let welcome = Welcome {
            endpoints: serving.endpoints().into_iter().map(Into::into).collect(),
            probe: serving.probe().clone().into(),
            bytes: self.bytes,
            handle: HANDLE,
            windows: windows.collect::<anyhow::Result<_>>()?,
            tree: self.tree.clone(),
        };
        Ok((serving, welcome))
    }
}
