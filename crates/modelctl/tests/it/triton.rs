//! A real Triton server beside a sidecar: what a client sees of new versions, which is only that the answers change.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use serde_json::Value;

use crate::{
    sidecar::Sidecar,
    support::{Registry, Scratch, skip, until},
};

/// The program that `scripts/setup` makes.
fn program() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| env::home_dir().map(|home| home.join(".cache")))?;
    Some(cache.join("modelcast/triton/bin/tritonserver")).filter(|program| program.exists())
}

/// The same; says why there is none.
pub(crate) fn program_or_skip() -> Option<PathBuf> {
    let program = program();
    if program.is_none() {
        skip("there is no Triton: scripts/setup installs it");
    }
    program
}

/// Triton in explicit mode, with no model loaded. It is killed with this value.
struct Triton(Child);

impl Triton {
    /// `None`, and says why, where there is none.
    fn start(scratch: &Scratch, port: u16) -> Option<Self> {
        let program = program_or_skip()?;
        fs::create_dir_all(scratch.path("models/triton")).unwrap();
        let log = fs::File::options().create(true).append(true).open(scratch.path("triton.log")).unwrap();
        let child = Command::new(program)
            .args(["--model-control-mode=explicit", "--http-address=127.0.0.1", "--allow-grpc=false"])
            .args(["--allow-metrics=false", "--exit-timeout-secs=5"])
            .arg(format!("--model-repository={}", scratch.path("models/triton").display()))
            .arg(format!("--http-port={port}"))
            .stdout(Stdio::from(log.try_clone().unwrap()))
            .stderr(Stdio::from(log))
            .spawn()
            .unwrap();
        let triton = Self(child);
        until("Triton answers", || {
            request(port, "GET", "/v2/health/live", "").is_ok_and(|(status, _)| status == 200)
        });
        Some(triton)
    }
}

impl Drop for Triton {
    fn drop(&mut self) {
        // It ends its Python processes only when it may say goodbye.
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Reads as much as the answer says it has: a model's Python process that was started meanwhile keeps the connection
/// open, whatever Triton does.
fn request(port: u16, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    // In one piece: where the path arrives in two, Triton's library looks for half of it.
    socket.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(socket);
    let (mut line, mut status, mut length) = (String::new(), 0, 0);
    while reader.read_line(&mut line)? > 2 {
        if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
            status = rest.split(' ').next().and_then(|status| status.parse().ok()).unwrap_or(0);
        } else if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// 10 times the weight that is loaded.
fn infer(port: u16) -> Result<f64, String> {
    let body = r#"{"inputs":[{"name":"x","shape":[2],"datatype":"FP32","data":[1,10]}]}"#;
    let (status, text) =
        request(port, "POST", "/v2/models/chat/infer", body).map_err(|error| error.to_string())?;
    let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{status}: {error}: {text}"))?;
    answer["outputs"][0]["data"][1].as_f64().ok_or_else(|| format!("{status}: {answer}"))
}

/// Infers without a pause until it is stopped.
struct Client {
    is_over: Arc<AtomicBool>,
    seen: Arc<Mutex<(u64, BTreeSet<String>)>>,
    thread: JoinHandle<BTreeSet<String>>,
}

impl Client {
    fn start(port: u16) -> Self {
        let (is_over, seen) =
            (Arc::<AtomicBool>::default(), Arc::<Mutex<(u64, BTreeSet<String>)>>::default());
        let (ends, notes) = (Arc::clone(&is_over), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            let mut errors = BTreeSet::new();
            while !ends.load(Ordering::Relaxed) {
                match infer(port) {
                    Ok(answer) => {
                        let mut seen = notes.lock().unwrap();
                        seen.0 += 1;
                        seen.1.insert(answer.to_string());
                    }
                    Err(error) => drop(errors.insert(error)),
                }
            }
            errors
        });
        Self { is_over, seen, thread }
    }

    fn has_seen(&self, answer: &str) -> bool {
        self.seen.lock().unwrap().1.contains(answer)
    }

    /// How often it got an answer, and what else it got.
    fn stop(self) -> (u64, BTreeSet<String>) {
        self.is_over.store(true, Ordering::Relaxed);
        let errors = self.thread.join().unwrap();
        (self.seen.lock().unwrap().0, errors)
    }
}

/// A file with one number, `w`.
fn weights(value: f32) -> Vec<u8> {
    let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    [&(header.len() as u64).to_le_bytes()[..], header, &value.to_le_bytes()].concat()
}

const CONFIG: &str = r#"backend: "python"
max_batch_size: 0
input [ { name: "x" data_type: TYPE_FP32 dims: [ -1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"#;

const MODEL: &str = r#"import os
import triton_python_backend_utils as pb
from safetensors.numpy import load_file


class TritonPythonModel:
    def initialize(self, args):
        version = os.path.join(args["model_repository"], args["model_version"])
        self.w = load_file(os.path.join(version, "model.safetensors"))["w"]

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb.get_input_tensor_by_name(request, "x").as_numpy()
            answers.append(pb.InferenceResponse([pb.Tensor("y", x * self.w)]))
        return answers
"#;

#[test]
fn a_client_sees_new_versions_and_no_error_and_a_bad_one_is_taken_back() {
    let (scratch, registry, port) = (Scratch::new(), Registry::start(), free_port());
    let Some(triton) = Triton::start(&scratch, port) else { return };
    let publish = |weights: &[u8]| {
        scratch.write("model/config.pbtxt", CONFIG);
        scratch.write("model/model.py", MODEL);
        scratch.write("model/model.safetensors", weights);
        scratch.stdout(&["build", "model", "-t", &registry.reference("models/chat:stable"), "--plain-http"]);
        registry.digest("models/chat", "stable")
    };
    let first = publish(&weights(2.0));
    let config = format!(
        "[[model]]\nreference = \"{}\"\ndirectory = \"models/chat\"\n[model.triton]\nurl = \"http://127.0.0.1:{port}\"\nrepository = \"models/triton\"\n",
        registry.reference("models/chat:stable"),
    );
    scratch.write("sidecar.toml", config);
    let sidecar = Sidecar::start(&scratch, &["--config", "sidecar.toml", "--peer", "none"]);
    let is_loaded = |digest: &str| {
        let model = sidecar.model();
        model["digest"] == digest && model["loaded"] == true
    };
    until("the first is loaded", || is_loaded(&first));
    assert_eq!(infer(port), Ok(20.0));
    let client = Client::start(port);
    let second = publish(&weights(3.0));
    until("the client sees the second", || client.has_seen("30"));
    until("it is in place", || sidecar.model()["digest"] == second);
    // A header without its data: `pull` delivers what was published, and Triton cannot open it.
    let third = publish(&weights(4.0)[..50]);
    until("the third is refused", || sidecar.model()["refused"] == third);
    assert_eq!((infer(port), &sidecar.model()["digest"]), (Ok(30.0), &second.clone().into()));
    let fourth = publish(&weights(5.0));
    until("the client sees the fourth", || client.has_seen("50"));
    until("it is in place", || is_loaded(&fourth));
    let (answers, errors) = client.stop();
    assert_eq!(errors, BTreeSet::new(), "beside {answers} answers");
    assert!(answers > 10, "{answers}");
    assert!(!sidecar.model()["stale"].is_string());
    // A Triton that was started anew has nothing loaded, and gets what is in place.
    drop(triton);
    until("it is missed", || sidecar.model()["loaded"] == false);
    assert_eq!(sidecar.get("/readyz").0, 200, "the model is there all the same");
    let _triton = Triton::start(&scratch, port).unwrap();
    until("the fourth is loaded again", || infer(port) == Ok(50.0));
}
