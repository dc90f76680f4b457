//! The face as a scraper sees it: requests over a real socket.

#![allow(clippy::unwrap_used, reason = "clippy lets tests unwrap, but not the helpers that they share")]

use std::{sync::Arc, time::Duration};

use telemetry::{Health, Watched, serve};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(30);

struct Process(Health);

impl Watched for Process {
    fn metrics(&self) -> String {
        "modelctl_peers 3\n".to_owned()
    }

    fn health(&self) -> Health {
        self.0.clone()
    }
}

/// The status line's code and the body of the answer to one request.
async fn ask(health: Health, request: &str) -> (String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asking = async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("{request} HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
    };
    tokio::select! {
        answer = timeout(PATIENCE, asking) => answer.unwrap(),
        never = serve(listener, Arc::new(Process(health))) => match never {},
    }
}

async fn check(health: Health, request: &str, code: &str, body: &str) {
    assert_eq!(ask(health, request).await, (code.to_owned(), body.to_owned()), "{request}");
}

#[tokio::test]
async fn two_pages_are_read_and_nothing_else_is() {
    let serving = Health::Serving("ok");
    check(serving.clone(), "GET /metrics", "200", "modelctl_peers 3\n").await;
    check(serving.clone(), "HEAD /metrics", "200", "").await;
    check(serving.clone(), "GET /healthz", "200", "ok\n").await;
    check(Health::Unready("starting"), "GET /healthz", "503", "starting\n").await;
    check(serving.clone(), "GET /", "404", "there are /metrics and /healthz\n").await;
    check(serving, "POST /metrics", "405", "only GET and HEAD\n").await;
}
