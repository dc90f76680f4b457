//! Triton, played by a stand-in: what a real one does not do when one wants it to. A real one is in modelctl's tests.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    standin::{Answer, Standin},
    support::{Site, until, version},
};

/// What Triton answers: it has the last version that it could load, and cannot load the third.
struct Loaded {
    repository: std::path::PathBuf,
    number: std::sync::Mutex<Option<String>>,
    is_slow: AtomicBool,
}

impl Loaded {
    fn of(repository: &Path) -> Arc<Self> {
        Arc::new(Self {
            repository: repository.to_owned(),
            number: std::sync::Mutex::default(),
            is_slow: false.into(),
        })
    }

    fn answer(&self, asked: &str) -> Answer {
        if asked.starts_with("POST /v2/repository/models/chat/load") {
            let found =
                fs::read_dir(self.repository.join("chat")).unwrap().map(|entry| entry.unwrap().file_name());
            let number =
                found.filter_map(|name| name.into_string().ok()).find(|name| name.parse::<u8>().is_ok());
            let number = number.unwrap();
            let is_bad = fs::read_to_string(self.repository.join("chat").join(&number).join("model.py"))
                .unwrap()
                == "3";
            if self.is_slow.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(400));
            }
            if is_bad {
                return (400, r#"{"error": "load failed for model 'chat'"}"#.to_owned());
            }
            *self.number.lock().unwrap() = Some(number);
            return (200, String::new());
        }
        let number = self.number.lock().unwrap().clone();
        if asked == "POST /v2/repository/index {}" {
            let version = number.unwrap_or_default();
            return (200, format!(r#"[{{"name": "chat", "version": "{version}", "state": "READY"}}]"#));
        }
        let is_ready =
            asked.strip_prefix("GET /v2/models/chat/versions/").and_then(|rest| rest.strip_suffix("/ready"));
        let is_ready = is_ready.is_none_or(|asked| number.as_deref() == Some(asked));
        (if is_ready { 200 } else { 400 }, String::new())
    }
}

fn config(site: &Site, url: &str) -> String {
    let repository = site.path("repository");
    format!(
        "[model.triton]\nurl = \"{url}\"\nrepository = \"{}\"\nload_timeout = \"200ms\"\n",
        repository.display()
    )
}

#[tokio::test]
async fn a_version_that_triton_refuses_is_taken_back() {
    let site = Site::new();
    let loaded = Loaded::of(&site.path("repository"));
    let answers = Arc::clone(&loaded);
    let standin = Standin::start(move |asked| answers.answer(asked));
    let digest = |number| version(number).to_string();
    site.meanwhile(&config(&site, &standin.url()), async {
        until("the first is loaded", || site.shown()["loaded"] == true).await;
        site.registry.change(|state| state.tag = Some(2));
        until("the second is in place", || site.shown()["digest"] == digest(2)).await;
        site.registry.change(|state| state.tag = Some(3));
        until("the third is refused", || site.shown()["refused"] == digest(3)).await;
        assert_eq!(site.in_place().as_deref(), Some("2"));
        assert_eq!(fs::read_to_string(site.path("repository/chat/config.pbtxt")).unwrap(), "2");
        site.registry.change(|state| state.tag = Some(4));
        until("the fourth is in place", || site.shown()["digest"] == digest(4)).await;
    })
    .await;
    assert!(loaded.number.lock().unwrap().is_some());
    // It was asked for once only.
    assert_eq!(site.registry.pulled(), [1, 2, 3, 4]);
}

#[tokio::test]
async fn without_triton_the_model_is_ready_and_loaded_once_triton_is_there() {
    let site = Site::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let loaded = Loaded::of(&site.path("repository"));
    site.meanwhile(&config(&site, &format!("http://{address}")), async {
        until("it is ready, and not loaded", || site.is_ready() && site.shown()["loaded"] == false).await;
        assert!(site.shown()["problem"].as_str().unwrap().contains("Connection refused"), "{}", site.shown());
        // A new version does not come into a repository of which nobody knows who reads it.
        site.registry.change(|state| state.tag = Some(2));
        until("it says so", || !site.shown()["stale"].is_null()).await;
        assert_eq!(site.in_place().as_deref(), Some("1"));
        let answers = Arc::clone(&loaded);
        let _standin =
            Standin::start_at(TcpListener::bind(address).unwrap(), move |asked| answers.answer(asked));
        until("the second is in place", || site.in_place().as_deref() == Some("2")).await;
        until("it is loaded", || site.shown()["loaded"] == true).await;
    })
    .await;
}

#[tokio::test]
async fn a_triton_that_is_too_slow_keeps_its_version_and_is_asked_again() {
    let site = Site::new();
    let loaded = Loaded::of(&site.path("repository"));
    let answers = Arc::clone(&loaded);
    let standin = Standin::start(move |asked| answers.answer(asked));
    site.meanwhile(&config(&site, &standin.url()), async {
        until("the first is loaded", || site.shown()["loaded"] == true).await;
        loaded.is_slow.store(true, Ordering::Relaxed);
        site.registry.change(|state| state.tag = Some(2));
        until("it says so", || {
            site.shown()["stale"].as_str().is_some_and(|why| why.contains("no answer within"))
        })
        .await;
        assert_eq!(site.in_place().as_deref(), Some("1"));
        loaded.is_slow.store(false, Ordering::Relaxed);
        until("the second is in place", || site.in_place().as_deref() == Some("2")).await;
    })
    .await;
}
