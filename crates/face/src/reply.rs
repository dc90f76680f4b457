//! Answers as HTTP has them.
//!
//! Owns: bodies, headers that every answer has, errors in the specification's form. Does not own: which answer it is.

use std::io;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Response, StatusCode,
    body::Frame,
    header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE},
};
use serde_json::json;

use crate::seam::{Refused, Why};

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// RFC 7234, section 5.5.2: the registry was asked and gave no answer.
pub(crate) const STALE: &str = "111 modelctl \"Revalidation Failed\"";

/// How long a client of a registry that is asked too often, or cannot be asked, is told to wait.
const RETRY_AFTER_S: u16 = 1;

/// An answer of these bytes.
pub(crate) fn whole(status: StatusCode, media_type: &str, raw: impl Into<Bytes>) -> Response<Body> {
    let raw = raw.into();
    let length = raw.len() as u64;
    let mut response = Response::new(Full::new(raw).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    put(&mut response, CONTENT_TYPE, media_type);
    put(&mut response, CONTENT_LENGTH, &length.to_string());
    response
}

/// An answer of `bytes` bytes that come one after another.
pub(crate) fn stream(
    status: StatusCode,
    bytes: u64,
    chunks: BoxStream<'static, io::Result<Bytes>>,
) -> Response<Body> {
    let frames = StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data)));
    let mut response = Response::new(frames.boxed_unsync());
    *response.status_mut() = status;
    put(&mut response, CONTENT_TYPE, "application/octet-stream");
    put(&mut response, CONTENT_LENGTH, &bytes.to_string());
    response
}

/// Sets a header whose value was made here or checked. One that no header can carry is left away.
pub(crate) fn put(response: &mut Response<Body>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().insert(name, value);
    }
}

/// An error in the specification's form.
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = json!({ "errors": [{ "code": code, "message": message }] });
    whole(status, "application/json", body.to_string())
}

/// What can only be read is not written.
pub(crate) fn read_only() -> Response<Body> {
    let message = "this registry can only be read: push to the registry that it stands in for";
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message);
    put(&mut response, ALLOW, "GET, HEAD");
    response
}

/// A refusal.
pub(crate) fn refused(refused: &Refused) -> Response<Body> {
    let (status, code) = match refused.why {
        Why::Unauthorized | Why::Gated => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
        Why::Denied => (StatusCode::FORBIDDEN, "DENIED"),
        Why::NoName => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        Why::NoManifest => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
        Why::NoBlob => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
        Why::TooMany => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
        Why::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
    };
    let mut response = error(status, code, &refused.message);
    if matches!(refused.why, Why::TooMany | Why::Unavailable) {
        response.headers_mut().insert(hyper::header::RETRY_AFTER, RETRY_AFTER_S.into());
    }
    for challenge in &refused.challenges {
        if let Ok(challenge) = HeaderValue::try_from(challenge) {
            response.headers_mut().append(WWW_AUTHENTICATE, challenge);
        }
    }
    response
}
