//! Tests of `transport-rdma` against its public face: on the fake fabric, and on a device where there is one.

mod device;
mod faults;
mod laws;
mod rails;
mod site;
mod windows;
