//! Links keep the laws of every transport. Owns the harness; the device's test is in `device`.

use std::sync::{Arc, Mutex, Weak};

use memory::Region;
use transport::{
    CompletionSink, Exports, Link,
    conformance::{Harness, Law, OneSided, laws},
};
use transport_rdma::{RdmaLink, Registration, Serving, Source};

use crate::site::Site;

/// A site, and what the laws made of it.
pub(crate) struct Lawful {
    site: Site,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    servings: Vec<(Serving, Arc<Source>)>,
    registrations: Vec<Registration>,
    link: Weak<RdmaLink>,
}

impl Harness for Lawful {
    fn connect(&self, exports: Exports, in_flight_max: usize, sink: CompletionSink) -> Arc<dyn Link> {
        let offer = self.site.child.offer(in_flight_max, sink).expect("queue pairs");
        let serving = self.site.parent.serve(&offer.endpoints()).expect("one network");
        let link = offer.connect(&serving.endpoints(), serving.probe()).expect("a path");
        // The handle that laws use.
        let export = exports.get(1).expect("exported");
        let file = export.file().try_clone().expect("a descriptor");
        let source = Source::new(&self.site.parent, Arc::new(file), export.bytes(), 1);
        source.readable(0..export.bytes()).expect("readable");
        link.grant(1, serving.window(&source, 0).expect("pinned")).expect("a good grant");
        let mut kept = self.kept.lock().expect("one thread");
        kept.servings.push((serving, source));
        kept.link = Arc::downgrade(&link);
        link
    }

    fn one_sided(&self) -> Option<&dyn OneSided> {
        Some(self)
    }
}

impl OneSided for Lawful {
    fn register(&self, region: &Arc<Region>) {
        let registration = self.site.child.register(region, 0..region.len()).expect("pinned");
        self.kept.lock().expect("one thread").registrations.push(registration);
    }

    fn forget(&self, window: u64) {
        if let Some(link) = self.kept.lock().expect("one thread").link.upgrade() {
            link.forget(window, 0);
        }
    }

    fn hold(&self) {
        self.site.script.hold();
    }

    fn release(&self) {
        self.site.script.release();
    }
}

/// Each law by name, and what makes a new harness for it.
pub(crate) fn of(site: fn() -> Site) -> impl Iterator<Item = (&'static str, Law, impl Fn() -> Lawful)> {
    let lawful = move || Lawful { site: site(), kept: Mutex::default() };
    laws(&lawful()).map(move |(name, law)| (*name, *law, lawful))
}

#[test]
fn a_link_over_one_rail_keeps_every_law() {
    for (name, law, harness) in of(|| Site::fake(1)) {
        println!("law: {name}");
        law(&harness());
    }
}

#[test]
fn a_link_over_three_rails_keeps_every_law() {
    for (name, law, harness) in of(|| Site::fake(3)) {
        println!("law: {name}");
        law(&harness());
    }
}
