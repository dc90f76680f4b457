//! The words of failures. How connections behave is tested where they are used: in crates `scheduler` and `peer`.

use std::{error::Error, fmt, io};

use tonic::Status;
use wire::connection::{explain, reason};

/// An error with a cause.
#[derive(Debug)]
struct Because(&'static str, Box<dyn Error>);

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Because {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.1.as_ref())
    }
}

#[test]
fn a_failure_is_told_with_its_causes_once_each() {
    let refused = || Box::new(io::Error::other("refused"));
    assert_eq!(explain(&Because("cannot connect", refused())), "cannot connect: refused");
    let repeated = Because("cannot connect: refused", refused());
    assert_eq!(explain(&repeated), "cannot connect: refused");
    assert_eq!(explain(&Status::not_found("no\u{1b}such\nthing")), "nosuchthing");
    let within = Because("cannot ask", Box::new(Status::not_found("no such thing")));
    assert_eq!(explain(&within), "cannot ask: no such thing");
}

#[test]
fn a_reason_fits_a_line() {
    assert_eq!(reason("too\r\n\u{1b}[31m long"), "too[31m long");
    assert_eq!(reason(&"é".repeat(10_000)).chars().count(), 256);
}
