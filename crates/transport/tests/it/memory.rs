//! The in-process link keeps the laws.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Instant,
};

use transport::{
    CompletionSink, Exports, Link,
    conformance::{Harness, laws},
    memory::MemoryLink,
};

/// Steps every link it made that is still there.
#[derive(Default)]
struct Memory(Mutex<Vec<Weak<MemoryLink>>>);

impl Harness for Memory {
    fn connect(&self, exports: Exports, in_flight_max: usize, sink: CompletionSink) -> Arc<dyn Link> {
        let link = MemoryLink::new(exports, in_flight_max, sink);
        self.0.lock().expect("one thread").push(Arc::downgrade(&link));
        link
    }

    fn pump(&self) {
        let links = self.0.lock().expect("one thread").clone();
        for link in links.iter().filter_map(Weak::upgrade) {
            while link.step(Instant::now()) {}
        }
    }
}

#[test]
fn the_memory_link_keeps_every_law() {
    for (name, law) in laws(&Memory::default()) {
        println!("law: {name}");
        law(&Memory::default());
    }
}
