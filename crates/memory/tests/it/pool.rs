//! A pool lends no more than it has.

use memory::Pool;

#[test]
fn a_pool_lends_no_more_than_it_has_and_takes_buffers_back() {
    let pool = Pool::new(2, 16).unwrap();
    let first = pool.try_lease(16).expect("two are free");
    let _second = pool.try_lease(1).expect("one is free");
    assert!(pool.try_lease(1).is_none());
    drop(first.filled());
    assert_eq!(pool.free(), 1);
    assert!(pool.try_lease(4).is_some());
    assert!(pool.try_lease(0).expect("one is free").is_empty());
    assert_eq!(pool.free(), 1);
}

#[test]
fn a_filled_lease_shows_only_its_length() {
    let pool = Pool::new(1, 16).unwrap();
    let mut lease = pool.try_lease(3).expect("free");
    lease.as_mut_slice().copy_from_slice(b"abc");
    assert_eq!(&*lease.filled(), b"abc");
    let again = pool.try_lease(2).expect("came back");
    assert_eq!(again.len(), 2);
}

#[test]
fn buffers_never_share_a_byte() {
    let pool = Pool::new(4, 5000).unwrap();
    let mut leases: Vec<_> = (0..4).map(|_| pool.try_lease(5000).unwrap()).collect();
    for (fill, lease) in (1..).zip(&mut leases) {
        lease.as_mut_slice().fill(fill);
    }
    for (fill, lease) in (1..).zip(leases) {
        assert!(lease.filled().iter().all(|byte| *byte == fill));
    }
}
