//! Links over the fake fabric keep the laws.

use std::sync::{Arc, Mutex};

use memory::Region;
use transport::{
    CompletionSink, Exports, Link,
    conformance::{Harness, OneSided, laws},
};
use transport_rdma::{Rdma, RdmaLink, Registration, Serving, Source, fake::Fabric};

/// A child and a parent, and what the laws made of them.
struct Fake {
    fabric: Fabric,
    child: Rdma,
    parent: Rdma,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    servings: Vec<(Serving, Arc<Source>)>,
    registrations: Vec<Registration>,
    link: std::sync::Weak<RdmaLink>,
}

impl Fake {
    fn new(rails: usize) -> Self {
        let fabric = Fabric::new();
        Self { child: fabric.adapter(rails), parent: fabric.adapter(rails), fabric, kept: Mutex::default() }
    }
}

impl Harness for Fake {
    fn connect(&self, exports: Exports, in_flight_max: usize, sink: CompletionSink) -> Arc<dyn Link> {
        let offer = self.child.offer(in_flight_max, sink).expect("queue pairs");
        let serving = self.parent.serve(&offer.endpoints()).expect("one network");
        let link = offer.connect(&serving.endpoints(), serving.probe()).expect("a path");
        // The handle that laws use.
        let export = exports.get(1).expect("exported");
        let file = export.file().try_clone().expect("a descriptor");
        let source = Source::new(&self.parent, Arc::new(file), export.bytes(), 1);
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

impl OneSided for Fake {
    fn register(&self, region: &Arc<Region>) {
        let registration = self.child.register(region, 0..region.len()).expect("pinned");
        self.kept.lock().expect("one thread").registrations.push(registration);
    }

    fn forget(&self, window: u64) {
        if let Some(link) = self.kept.lock().expect("one thread").link.upgrade() {
            link.forget(window, 0);
        }
    }

    fn hold(&self) {
        self.fabric.script().hold();
    }

    fn release(&self) {
        self.fabric.script().release();
    }
}

fn check(rails: usize) {
    for (name, law) in laws(&Fake::new(rails)) {
        println!("law over {rails} rails: {name}");
        law(&Fake::new(rails));
    }
}

#[test]
fn a_link_over_one_rail_keeps_every_law() {
    check(1);
}

#[test]
fn a_link_over_three_rails_keeps_every_law() {
    check(3);
}
