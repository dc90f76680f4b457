//! vLLM and SGLang, played by stand-ins that write down what they are asked.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use crate::{
    standin::{Answer, Standin},
    support::{Site, until},
};

const SLEEP: &str = "POST /sleep?level=2";
const WEIGHTS: &str = "POST /wake_up?tags=weights";
const RELOAD: &str = r#"POST /collective_rpc {"method":"reload_weights"}"#;
const CACHE: &str = "POST /wake_up?tags=kv_cache";

/// A server that notes what is in place when it is asked to read it, and refuses to read one version.
fn engine(dir: PathBuf, reads: &'static str, refusal: Answer) -> (Standin, Arc<Mutex<Vec<String>>>) {
    let read = Arc::<Mutex<Vec<String>>>::default();
    let noted = Arc::clone(&read);
    let standin = Standin::start(move |asked| {
        if !asked.starts_with(reads) {
            return (200, String::new());
        }
        let found = fs::read_to_string(dir.join("model.py")).unwrap();
        noted.lock().unwrap().push(found.clone());
        if found == "3" { refusal.clone() } else { (200, r#"{"success": true}"#.to_owned()) }
    });
    (standin, read)
}

async fn switches(site: &Site, server: &str) {
    site.meanwhile(server, async {
        until("the first is in place", || site.is_ready()).await;
        site.registry.change(|state| state.tag = Some(2));
        until("the second is in place", || site.shown()["digest"] == crate::support::version(2).to_string())
            .await;
        site.registry.change(|state| state.tag = Some(3));
        until("the third is refused", || !site.shown()["refused"].is_null()).await;
        assert_eq!(site.in_place().as_deref(), Some("2"));
        assert!(site.is_ready());
    })
    .await;
    assert_eq!(site.registry.pulled(), [1, 2, 3]);
}

#[tokio::test]
async fn vllm_sleeps_takes_the_weights_and_wakes_up_and_goes_back_if_they_do_not_fit() {
    let site = Site::new();
    let refusal = (500, r#"{"error": "size mismatch"}"#.to_owned());
    let (standin, read) = engine(site.path("chat"), "POST /collective_rpc", refusal);
    switches(&site, &format!("[model.vllm]\nurl = \"{}\"\n", standin.url())).await;
    let mut expected = vec![SLEEP, WEIGHTS, RELOAD, CACHE, SLEEP, WEIGHTS];
    // Tried again, but not for ever; then the former version.
    expected.extend([RELOAD; 4]);
    expected.extend([WEIGHTS, RELOAD, CACHE]);
    assert_eq!(standin.asked(), expected);
    assert_eq!(*read.lock().unwrap(), ["2", "3", "3", "3", "3", "2"]);
    assert!(site.shown()["stale"].as_str().unwrap().contains("size mismatch"), "{}", site.shown());
}

#[tokio::test]
async fn sglang_is_told_where_the_weights_are_and_goes_back_if_they_do_not_fit() {
    let site = Site::new();
    let refusal = (200, r#"{"success": false, "message": "size mismatch"}"#.to_owned());
    let (standin, read) = engine(site.path("chat"), "POST /update_weights_from_disk", refusal);
    switches(&site, &format!("[model.sglang]\nurl = \"{}\"\nmodel_path = \"/m\"\n", standin.url())).await;
    let update = r#"POST /update_weights_from_disk {"model_path":"/m"}"#;
    assert_eq!(standin.asked(), [update; 3]);
    assert_eq!(*read.lock().unwrap(), ["2", "3", "2"]);
}

#[tokio::test]
async fn a_server_that_does_not_go_to_sleep_keeps_its_version_until_it_does() {
    let site = Site::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let server = format!("[model.vllm]\nurl = \"http://{address}\"\n");
    site.meanwhile(&server, async {
        until("the first is in place", || site.is_ready()).await;
        site.registry.change(|state| state.tag = Some(2));
        until("it says so", || {
            site.shown()["stale"].as_str().is_some_and(|why| why.contains("does not sleep"))
        })
        .await;
        assert_eq!(site.in_place().as_deref(), Some("1"));
        let listener = std::net::TcpListener::bind(address).unwrap();
        let standin = Standin::start_at(listener, |_| (200, String::new()));
        until("the second is in place", || site.in_place().as_deref() == Some("2")).await;
        until("it is awake", || standin.asked() == [SLEEP, WEIGHTS, RELOAD, CACHE]).await;
    })
    .await;
}
