//! The answer to a question for a blob's bytes.
//!
//! Owns: whole, part or refusal, and the headers that say which. Does not own: reading `Range` (`range`).

use hyper::{
    HeaderMap, Response, StatusCode,
    header::{ACCEPT_RANGES, CONTENT_RANGE, ETAG, HeaderName, IF_RANGE, RANGE},
};

use crate::{
    range::{Wanted, wanted},
    reply::{self, Body, put},
    seam::Content,
};

/// What a request with these headers gets of a blob whose strong validator is `etag`.
pub(crate) fn of(content: Box<dyn Content>, headers: &HeaderMap, etag: &str) -> Response<Body> {
    let bytes = content.bytes();
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let mut response = match wanted(text(RANGE), text(IF_RANGE), etag, bytes) {
        Wanted::Whole => reply::stream(StatusCode::OK, bytes, content.read(0..bytes)),
        Wanted::Part(part) => {
            let stated = format!("bytes {}-{}/{bytes}", part.start, part.end - 1);
            let length = part.end - part.start;
            let mut response = reply::stream(StatusCode::PARTIAL_CONTENT, length, content.read(part));
            put(&mut response, CONTENT_RANGE, &stated);
            response
        }
        Wanted::Unsatisfiable => {
            let message = format!("the blob has {bytes} bytes");
            let mut response = reply::error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", &message);
            put(&mut response, CONTENT_RANGE, &format!("bytes */{bytes}"));
            response
        }
    };
    put(&mut response, ETAG, etag);
    put(&mut response, ACCEPT_RANGES, "bytes");
    response
}
