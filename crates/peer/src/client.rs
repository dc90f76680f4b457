//! `modelctl pull` through the local peer: the daemon fetches, this process puts the files into place.
//!
//! Owns: the client's side of the local socket. Does not own: how the daemon fetches.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use modelpack::{
    digest::Sha256Digest,
    index::sole_manifest,
    layout::BlobIndex,
    manifest::{Blob, Manifest},
    reference::Reference,
};
use planner::Priority;
use registry::{Access, Mirror, MirrorBytes, Serves};
use store::{Contents, LinkMode, OpenedOutput, Output, OutputDir, Published, StoreError};
use wire::{
    FEATURES, PROTOCOL_VERSION, WireError, check_version,
    connection::reason,
    local::{
        Accepted, ClientFrame, DaemonFrame, Done, Failure, Hello, LocalStream, Pull,
        client_frame::Kind as Said, daemon_frame::Kind as Told,
    },
};

use crate::{
    blame::Blamed,
    descriptors,
    error::{ErrorClass, PeerError, RemoteCause},
    fill::blocking,
    progress::Progress,
    pull::{PullReport, PullRequest, PullWatch},
};

/// A peer that listens but does not say hello within this time is taken for absent.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection to the local peer that has said hello.
#[derive(Debug)]
pub struct LocalPeer {
    stream: LocalStream,
    socket: std::path::PathBuf,
    schedulers: Vec<String>,
    has_fleet_key: bool,
}

impl LocalPeer {
    /// Connects to the peer at `socket`.
    pub async fn connect(socket: &Path) -> Result<Self, PeerError> {
        let failed = |source| PeerError::Local { socket: socket.to_path_buf(), source };
        let hello = async {
            let mut stream = LocalStream::connect(socket).await?;
            let hello = Hello { protocol_version: PROTOCOL_VERSION, features: FEATURES, ..Hello::default() };
            stream.send(&said(Said::Hello(hello))).await?;
            let (frame, _) = next_frame(&mut stream).await?;
            match frame {
                Told::Hello(hello) => check_version(hello.protocol_version).map(|()| (stream, Ok(hello))),
                // It says why it does not speak with this client.
                Told::Failure(failure) => Ok((stream, Err(failure))),
                _ => Err(WireError::Invalid { field: "kind", why: "the first frame is a hello" }),
            }
        };
        let late = |_| WireError::Io(std::io::ErrorKind::TimedOut.into());
        let hello = tokio::time::timeout(HELLO_TIMEOUT, hello).await;
        let (stream, hello) = hello.map_err(late).and_then(|stream| stream).map_err(failed)?;
        let Hello { schedulers, has_fleet_key, .. } = hello.map_err(remote)?;
        Ok(Self { stream, socket: socket.to_path_buf(), schedulers, has_fleet_key })
    }

    /// The schedulers of its fleet, as HOST:PORT.
    pub fn schedulers(&self) -> &[String] {
        &self.schedulers
    }

    /// Whether its fleet has a key, which it does not tell.
    pub fn has_fleet_key(&self) -> bool {
        self.has_fleet_key
    }

    /// Pulls through the peer. Dropping the future, or this connection, cancels it.
    pub async fn pull(
        mut self,
        request: PullRequest,
        link: LinkMode,
        watch: &PullWatch,
    ) -> Result<PullReport, PeerError> {
        descriptors::allow_many();
        let start = Instant::now();
        let manifest = self.ask(&request.reference, request.access, request.priority).await?;
        let contents = Contents::selected(&manifest, &request.selection).map_err(StoreError::from)?;
        let dir = request.output.clone();
        let output = match blocking(move || OutputDir::open(&dir, contents)).await? {
            OpenedOutput::Fresh(output) => output,
            OpenedOutput::Complete(record) => {
                let total = manifest.layout().total_bytes();
                watch.set(Progress { done: total, total, local: total, ..Progress::default() });
                let published = Published { dir: request.output, record, copied: 0 };
                let done = Done { totals: Some(watch.progress().into()), ..Done::default() };
                return Ok(report(&manifest, start, &done, Some(published)));
            }
        };
        let (blobs, done) = self.brought(&manifest, watch).await?;
        let whole = manifest.clone();
        let published = blocking(move || publish(output, &whole, blobs, link)).await?;
        Ok(report(&manifest, start, &done, Some(published)))
    }

    /// Has the peer bring an artifact into its own store, and nowhere else. Dropping the future cancels it.
    pub async fn store(
        mut self,
        reference: &Reference,
        (access, priority): (Access, Priority),
        watch: &PullWatch,
    ) -> Result<PullReport, PeerError> {
        descriptors::allow_many();
        let start = Instant::now();
        let manifest = self.ask(reference, access, priority).await?;
        let (_blobs, done) = self.brought(&manifest, watch).await?;
        Ok(report(&manifest, start, &done, None))
    }

    /// Says what is wanted; gives what that is.
    async fn ask(
        &mut self,
        reference: &Reference,
        access: Access,
        priority: Priority,
    ) -> Result<Manifest, PeerError> {
        let Access { plain_http, ca_pem, client_pem, credentials, hub, mirrors } = access;
        let (username, password) = credentials.into_pair();
        let pull = Pull {
            reference: reference.to_string(),
            plain_http,
            username,
            password,
            ca_certificates_pem: text(ca_pem),
            client_certificate_pem: text(client_pem),
            hub_endpoint: hub.endpoint,
            hub_token: hub.token.unwrap_or_default(),
            mirrors: mirrors.into_iter().map(told_mirror).collect(),
            priority: wire::local::Priority::from(priority).into(),
        };
        let sent = self.stream.send(&said(Said::Pull(pull))).await;
        sent.map_err(|source| self.failed(source))?;
        match self.next().await?.0 {
            Told::Accepted(accepted) => check_manifest(reference, &accepted),
            Told::Failure(failure) => Err(remote(failure)),
            _ => Err(self.unexpected()),
        }
    }

    /// Waits until the peer has everything; gives the blobs by number.
    async fn brought(
        &mut self,
        manifest: &Manifest,
        watch: &PullWatch,
    ) -> Result<(Vec<(u32, OwnedFd)>, Done), PeerError> {
        let mut blobs = Vec::new();
        let done = loop {
            match self.next().await? {
                (Told::Progress(progress), _) => watch.set(progress.into()),
                (Told::Blobs(numbers), fds) => {
                    if numbers.blobs.len() != fds.len() {
                        return Err(self.unexpected());
                    }
                    blobs.extend(numbers.blobs.into_iter().zip(fds));
                }
                (Told::Done(done), _) => break done,
                (Told::Failure(failure), _) => return Err(remote(failure)),
                _ => return Err(self.unexpected()),
            }
        };
        watch.set(done.totals.map(Progress::from).unwrap_or_default());
        let count = manifest.layout().blob_count();
        if blobs.iter().any(|(number, _)| *number >= count) {
            return Err(self.unexpected());
        }
        Ok((blobs, done))
    }

    async fn next(&mut self) -> Result<(Told, Vec<OwnedFd>), PeerError> {
        let next = next_frame(&mut self.stream).await;
        next.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: WireError) -> PeerError {
        PeerError::Local { socket: self.socket.clone(), source }
    }

    fn unexpected(&self) -> PeerError {
        self.failed(WireError::Invalid { field: "kind", why: "a frame that does not belong there" })
    }
}

async fn next_frame(stream: &mut LocalStream) -> Result<(Told, Vec<OwnedFd>), WireError> {
    let frame = stream.recv::<DaemonFrame>().await?;
    let (frame, fds) = frame.ok_or_else(|| WireError::Io(std::io::ErrorKind::UnexpectedEof.into()))?;
    let kind = frame.kind.ok_or(WireError::Invalid { field: "kind", why: "a frame of an unknown kind" })?;
    Ok((kind, fds))
}

fn said(kind: Said) -> ClientFrame {
    ClientFrame { kind: Some(kind) }
}

/// The peer resolved the reference; what it is is read here again, so that a confused peer cannot hand over something
/// else under a digest that the user named.
fn check_manifest(reference: &Reference, accepted: &Accepted) -> Result<Manifest, PeerError> {
    let name = reference.to_string();
    let unusable = |source| PeerError::Manifest { reference: name.clone(), source };
    let manifest = Manifest::parse(&accepted.manifest).map_err(unusable)?;
    let asked: Option<Sha256Digest> = match reference {
        Reference::Registry(at) => at.digest,
        Reference::Layout(at) => at.digest,
        Reference::Fleet(digest) => Some(*digest),
        Reference::Directory(_) | Reference::Hub(_) => None,
    };
    // A digest may name an index that lists the manifest.
    let index = &accepted.index;
    let is_listed = |asked: &Sha256Digest| {
        *asked == Sha256Digest::of(index)
            && matches!(sole_manifest(index), Ok(Some(sole)) if sole == manifest.digest())
    };
    match asked.filter(|asked| *asked != manifest.digest() && !is_listed(asked)) {
        Some(asked) => Err(PeerError::other_digest(&name, &asked, &manifest.digest())),
        None => Ok(manifest),
    }
}

/// Of the blobs, which are numbered as in the whole artifact, a selection needs some.
fn publish(
    output: Output,
    whole: &Manifest,
    blobs: Vec<(u32, OwnedFd)>,
    link: LinkMode,
) -> Result<Published, PeerError> {
    let needed = &output.contents().blobs;
    let place_of =
        |blob: &Blob| (0..).map(BlobIndex).zip(needed).find(|(_, needed)| needed.digest == blob.digest);
    let places: Vec<_> = whole.blobs().iter().map(|blob| place_of(blob).map(|(place, _)| place)).collect();
    for (number, descriptor) in blobs {
        if let Some(Some(place)) = places.get(number as usize) {
            output.place_from(*place, &File::from(descriptor), link)?;
        }
    }
    Ok(output.publish(Vec::new())?)
}

fn remote(failure: Failure) -> PeerError {
    let class = match failure.exit_code {
        2 => ErrorClass::Usage,
        3 => ErrorClass::Integrity,
        _ => ErrorClass::Failed,
    };
    PeerError::Remote {
        message: failure.message,
        source: RemoteCause::chain(failure.causes),
        hint: Some(failure.hint).filter(|hint| !hint.is_empty()),
        class,
    }
}

fn told_mirror(mirror: Mirror) -> wire::local::Mirror {
    let Mirror { registry, repository, serves, access } = mirror;
    let Access { plain_http, ca_pem, client_pem, credentials, hub: _, mirrors: _ } = access;
    let (username, password) = credentials.into_pair();
    wire::local::Mirror {
        registry,
        repository,
        plain_http,
        username,
        password,
        ca_certificates_pem: text(ca_pem),
        client_certificate_pem: text(client_pem),
        only_digests: serves == Serves::Digests,
        only_tags: serves == Serves::Tags,
    }
}

/// They were read as PEM text; anything else the registry client would have refused.
fn text(pem: Option<Vec<u8>>) -> String {
    String::from_utf8_lossy(&pem.unwrap_or_default()).into_owned()
}

fn mirrored(told: &wire::local::Mirrored) -> MirrorBytes {
    // It travels as it is said there.
    MirrorBytes { registry: told.registry.clone(), bytes: told.bytes }
}

/// `published` is none where nothing but the peer's store has it.
fn report(manifest: &Manifest, start: Instant, done: &Done, published: Option<Published>) -> PullReport {
    let totals = done.totals.map(Progress::from).unwrap_or_default();
    let seconds = |value: f64| Duration::try_from_secs_f64(value).ok().filter(|time| !time.is_zero());
    PullReport {
        digest: manifest.digest(),
        files: published.as_ref().map_or(manifest.files().len(), |published| published.record.files.len()),
        selection: published.as_ref().and_then(|published| published.record.selection.clone()),
        bytes: manifest.layout().total_bytes(),
        origin_bytes: totals.origin,
        mirrors: done.mirrored.iter().map(mirrored).collect(),
        peer_bytes: totals.peer,
        local_bytes: totals.local,
        tcp_bytes: done.tcp_bytes,
        rdma_bytes: done.rdma_bytes,
        direct_bytes: done.direct_bytes,
        staged_bytes: done.staged_bytes,
        landing: done.landing.clone(),
        elapsed: start.elapsed(),
        first_piece: seconds(done.first_piece_seconds),
        bound: seconds(done.bound_seconds),
        bounded_by: Some(done.bounded_by.clone()).filter(|stage| !stage.is_empty()),
        copied: published.as_ref().map_or(0, |published| published.copied),
        // Of the peer: it travels as it is said there.
        fallback_reason: Some(reason(&done.fallback_reason)).filter(|reason| !reason.is_empty()),
        blamed: done.blamed.iter().cloned().map(Blamed::from).collect(),
        output: published.map(|published| published.dir),
    }
}
