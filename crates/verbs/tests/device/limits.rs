//! What a device and this crate refuse, and how they say it. Does not own: reads that are posted.

use std::{os::unix::process::CommandExt as _, process::Command, sync::Arc};

use memory::{Access, Region};
use rustix::process::{Resource, Rlimit, geteuid, setrlimit};
use verbs::{
    AsyncEvents, CompletionQueue, Context, MemoryRegion, ProtectionDomain, QueuePair, Read, Rights, Role,
    Sink, State, VerbsError,
};

use crate::rig::{self, End, MIB, Rig, file, noise, reads, statuses};

fn read(sink: &Sink, local: &Arc<MemoryRegion>, range: std::ops::Range<usize>) -> Read {
    Read { id: 0, sink: sink.clone(), range, local: Arc::clone(local), address: 0, rkey: 0 }
}

/// Posts one read, which must be refused and handed back.
fn refused(pair: &mut QueuePair, read: Read) -> VerbsError {
    let error = pair.post_reads(vec![read]).expect_err("it is refused");
    assert_eq!(error.unposted.len(), 1, "it is handed back");
    error.error
}

#[test]
#[ignore = "needs an RDMA device"]
fn what_would_write_elsewhere_is_refused() {
    let mut rig = Rig::new();
    let (region, local) = rig.sink(2 * MIB);
    let half = MemoryRegion::register(&rig.fetch.domain, &region, 0..MIB, Rights::LocalWrite).expect("half");
    let readable =
        MemoryRegion::register(&rig.fetch.domain, &region, 0..2 * MIB, Rights::RemoteRead).expect("all");
    let (_, elsewhere) = rig.sink(2 * MIB);
    let sink = Sink::new(region.lease(MIB / 2..2 * MIB).expect("free"));
    let whole = sink.len();
    for (local, range) in
        [(&local, 0..whole + 1), (&local, 5..5), (&half, 0..MIB), (&readable, 0..MIB), (&elsewhere, 0..MIB)]
    {
        let error = refused(&mut rig.fetch.pair, read(&sink, local, range.clone()));
        assert!(matches!(error, VerbsError::Refused(_)), "{range:?} of {local:?}: {error}");
    }
    let foreign =
        MemoryRegion::register(&rig.serve.domain, &region, 0..2 * MIB, Rights::LocalWrite).expect("all");
    let error = refused(&mut rig.fetch.pair, read(&sink, &foreign, 0..MIB));
    assert!(error.to_string().contains("protection domain"), "{error}");
    let mut new = End::new(&rig.context, 1, 1);
    let own = MemoryRegion::register(&new.domain, &region, 0..2 * MIB, Rights::LocalWrite).expect("all");
    let error = refused(&mut new.pair, read(&sink, &own, 0..MIB));
    assert!(matches!(error, VerbsError::WrongState { state: State::Reset, .. }), "{error}");
    assert!(sink.into_lease().is_some(), "nobody holds what was refused");
}

#[test]
#[ignore = "needs an RDMA device"]
fn what_does_not_fit_is_refused() {
    let context = rig::context();
    let domain = ProtectionDomain::new(&context).expect("a domain");
    let region = file(&noise(MIB, 9));
    if region.access() == Access::Read {
        let error =
            MemoryRegion::register(&domain, &region, 0..MIB, Rights::LocalWrite).expect_err("read-only");
        assert!(error.to_string().contains("read-only"), "{error}");
    }
    for range in [0..0, MIB..MIB, 0..MIB + 1] {
        let error =
            MemoryRegion::register(&domain, &region, range, Rights::RemoteRead).expect_err("no range of it");
        assert!(matches!(error, VerbsError::Refused(_)), "{error}");
    }
    let error = CompletionQueue::new(&context, context.limits().cqe_max + 1).expect_err("too deep");
    assert_eq!(error.errno(), Some(22), "{error}");
    let queue = CompletionQueue::new(&context, 1).expect("a queue");
    let error = QueuePair::create(&domain, &queue, context.limits().sends_max + 1).expect_err("too many");
    assert_eq!(error.errno(), Some(22), "{error}");
    let other = Context::open(context.name()).expect("opened twice");
    let foreign = CompletionQueue::new(&other, 1).expect("a queue");
    let error = QueuePair::create(&domain, &foreign, 1).expect_err("of another context");
    assert!(matches!(error, VerbsError::Refused(_)), "{error}");
    let error = Context::open("none").expect_err("no such device");
    assert!(error.to_string().contains(context.name()), "{error}");
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_device_without_it_does_not_write_on_demand() {
    let context = rig::context();
    let domain = ProtectionDomain::new(&context).expect("a domain");
    let region = Region::anonymous(MIB).expect("memory");
    let registered = MemoryRegion::register(&domain, &region, 0..MIB, Rights::LocalWriteOnDemand);
    match (context.limits().has_odp_read, registered) {
        (true, registered) => drop(registered.expect("it says that it can")),
        (false, registered) => {
            let error = registered.expect_err("it says that it cannot");
            assert!(error.hint().is_some_and(|hint| hint.contains("ODP")), "{error:?}");
        }
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_failed_step_names_what_cannot_be_right() {
    let context = rig::context();
    let mut end = End::new(&context, 1, 1);
    let mut path = rig::path(&context, end.pair.number(), (1, 1));
    if path.peer.gid != [0; 16] {
        path.own.gid_index = 250;
        let error = end.pair.connect(&path, Role::Fetch).expect_err("no such address");
        assert!(error.to_string().contains("port 1 has no address of index 250"), "{error}");
        assert_eq!(end.pair.state(), State::Init);
    }
    let error = end.pair.connect(&path, Role::Fetch).expect_err("it is of no use any more");
    assert!(matches!(error, VerbsError::WrongState { .. }), "{error}");
}

#[test]
#[ignore = "needs an RDMA device"]
fn of_a_list_that_does_not_fit_the_rest_comes_back() {
    let context = rig::context();
    let mut rig = Rig::on(&context, 4);
    let data = noise(200 * 4096, 10);
    let source = rig.served(&file(&data));
    let (region, local) = rig.sink(data.len());
    let sink = Sink::new(region.lease(0..data.len()).expect("free"));
    let read = |index: usize| Read {
        id: index as u64,
        range: index * 4096..(index + 1) * 4096,
        address: source.address() + (index * 4096) as u64,
        rkey: source.rkey(),
        ..read(&sink, &local, 0..1)
    };
    let error =
        rig.fetch.pair.post_reads((0..200).map(read).collect()).expect_err("it has room for four or so");
    assert_eq!(error.error.errno(), Some(12), "ENOMEM: {error:?}");
    let posted = 200 - error.unposted.len();
    assert!((4..200).contains(&posted), "{posted} were posted");
    let done = rig.ended(posted);
    assert_eq!(statuses(&done), vec![None; posted]);
    let ids: Vec<u64> =
        done.iter().map(|done| done.id).chain(error.unposted.iter().map(|read| read.id)).collect();
    assert_eq!(ids, (0..200).collect::<Vec<u64>>(), "each either ended or came back");
    assert_eq!(rig::bytes(&region)[..posted * 4096], data[..posted * 4096]);
    let rest = error.unposted.into_iter().take(4).collect();
    rig.fetch.pair.post_reads(rest).expect("what came back can be posted");
    assert_eq!(statuses(&rig.ended(4)), [None; 4]);
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_queue_takes_no_more_reads_than_completions() {
    let mut rig = Rig::new();
    let source = rig.served(&file(&noise(MIB, 11)));
    let (region, local) = rig.sink(MIB);
    let sink = Sink::new(region.lease(0..MIB).expect("free"));
    let many = std::iter::repeat_with(|| reads(&sink, &local, &source)).flatten().take(257).collect();
    let error = rig.fetch.pair.post_reads(many).expect_err("256 fit");
    assert_eq!(error.unposted.len(), 257, "{error}");
    assert_eq!(rig.fetch.queue.in_flight(), 0);
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_low_limit_of_locked_memory_is_named() {
    const CHILD: &str = "MODELCAST_VERBS_MEMLOCK_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return with_little_locked_memory();
    }
    // Root has CAP_IPC_LOCK, and then there is no limit.
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child.args(["--exact", "limits::a_low_limit_of_locked_memory_is_named", "--ignored", "--nocapture"]);
    child.env(CHILD, "1");
    if geteuid().is_root() {
        child.uid(65534).gid(65534);
    }
    let output = child.output().expect("started");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "(may `nobody` open /dev/infiniband/uverbs*?) {said}");
    assert!(said.contains("1 passed"), "{said}");
}

fn with_little_locked_memory() {
    const LITTLE: u64 = 64 << 10;
    let limit = Rlimit { current: Some(LITTLE), maximum: Some(LITTLE) };
    setrlimit(Resource::Memlock, limit).expect("lowered");
    assert_eq!(verbs::findings().memlock.effective(), Some(LITTLE));
    let context = rig::context();
    let domain = ProtectionDomain::new(&context).expect("a domain");
    let region = Region::anonymous(MIB).expect("memory");
    let error =
        MemoryRegion::register(&domain, &region, 0..MIB, Rights::LocalWrite).expect_err("beyond the limit");
    assert_eq!(error.errno(), Some(12), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("ulimit -l")), "{error:?}");
    let within =
        MemoryRegion::register(&domain, &region, 0..16384, Rights::LocalWrite).expect("within the limit");
    drop(within);
    drop(AsyncEvents::new(&context).expect("it is of use all the same"));
}
