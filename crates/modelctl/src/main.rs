//! modelctl
fn main() {}
