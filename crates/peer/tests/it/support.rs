//! Small models with known bytes, as artifacts in an `oci:` layout.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use modelpack::{
    build::{self, Built, SourceFile},
    digest::Sha256Digest,
    layout::BlobPiece,
    piece_tree::TreeBuilder,
    piece_trees,
    reference::Reference,
};
use peer::{PullReport, PullRequest, PullWatch, Transports};
use registry::Access;
use store::LayoutWriter;

/// Longest time any of these tests may take.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

const PIECE: usize = 1 << 20;

/// A model directory and the artifact built from it.
pub(crate) struct Model {
    pub(crate) files: Vec<(String, Vec<u8>)>,
    pub(crate) built: Built,
}

/// Bytes that differ between seeds and between pieces.
pub(crate) fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    };
    (0..len.div_ceil(4)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

impl Model {
    /// Weights of `pieces` pieces and a bit, and two small files.
    pub(crate) fn of(pieces: usize) -> Self {
        Self::new(vec![
            ("config.json".into(), br#"{"model_type":"bert"}"#.to_vec()),
            ("model.bin".into(), pattern(7, pieces * PIECE + 1000)),
            ("docs/README.md".into(), b"# A model".to_vec()),
            ("empty.txt".into(), Vec::new()),
        ])
    }

    pub(crate) fn new(files: Vec<(String, Vec<u8>)>) -> Self {
        let sources = files.iter().map(|(path, bytes)| source(path, bytes)).collect();
        let built = build::build(sources, &build::Options::default()).unwrap();
        Self { files, built }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    pub(crate) fn digest(&self) -> Sha256Digest {
        Sha256Digest::of(&self.built.manifest)
    }

    /// Writes the artifact as a layout with the tag `v1`; says its reference.
    pub(crate) fn write_layout(&self, dir: &Path) -> Reference {
        let writer = LayoutWriter::open(dir).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        for (number, (_, bytes)) in self.files.iter().enumerate() {
            let path = scratch.path().join(number.to_string());
            fs::write(&path, bytes).unwrap();
            let source = File::open(path).unwrap();
            writer.write_blob(&Sha256Digest::of(bytes), bytes.len() as u64, &source).unwrap();
        }
        writer.write_bytes(&self.built.config).unwrap();
        writer.put_manifest(&self.built.manifest, Some("v1")).unwrap();
        if let Some(trees) = &self.built.trees {
            writer.write_bytes(&trees.config).unwrap();
            for (_, layer) in &trees.layers {
                writer.write_bytes(layer).unwrap();
            }
            writer.put_referrer(&trees.manifest, piece_trees::ARTIFACT_TYPE).unwrap();
        }
        format!("oci:{}:v1", dir.display()).parse().unwrap()
    }

    /// Every file is in `dir` with its bytes, and nothing else but our record.
    pub(crate) fn assert_in(&self, dir: &Path) {
        for (path, bytes) in &self.files {
            assert!(fs::read(dir.join(path)).unwrap() == *bytes, "{path} differs");
        }
        let mut found = names(dir);
        found.retain(|name| !name.starts_with(".modelctl"));
        let mut expected: Vec<PathBuf> = self.files.iter().map(|(path, _)| path.into()).collect();
        expected.sort();
        assert_eq!(found, expected);
    }
}

fn source(path: &str, bytes: &[u8]) -> SourceFile {
    let mut tree = TreeBuilder::new(bytes.len() as u64);
    for (number, piece) in (0..).zip(bytes.chunks(PIECE)) {
        tree.add(BlobPiece(number), piece);
    }
    let tree = tree.finish().unwrap();
    SourceFile {
        path: path.to_owned(),
        size: bytes.len() as u64,
        digest: Sha256Digest::of(bytes),
        root: Some(tree.root()),
        tree: tree.serialise(),
        is_executable: false,
        safetensors: None,
    }
}

/// Every file below `dir`, relative to it, sorted.
pub(crate) fn names(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.strip_prefix(dir).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    found
}

/// Pulls standalone, within bounds of time.
pub(crate) async fn pull(reference: Reference, output: &Path) -> Result<PullReport, peer::PeerError> {
    pull_by(Transports::tcp(), reference, output).await
}

/// The same with a limit.
pub(crate) async fn pull_by(
    transports: Transports,
    reference: Reference,
    output: &Path,
) -> Result<PullReport, peer::PeerError> {
    let request = request(reference, output, &[]);
    let watch = PullWatch::new();
    tokio::time::timeout(PATIENCE, peer::pull(request, transports, &watch))
        .await
        .expect("the pull ends in time")
}

/// To pull into `output`, with older versions in `bases`.
pub(crate) fn request(reference: Reference, output: &Path, bases: &[Reference]) -> PullRequest {
    PullRequest {
        reference,
        access: Access { plain_http: true, ..Access::default() },
        output: output.to_path_buf(),
        landing: peer::LandingMode::Auto,
        selection: std::sync::Arc::default(),
        bases: bases.to_vec(),
        priority: planner::Priority::default(),
    }
}

pub(crate) async fn until(mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it happens in time");
}

/// Waits for the end of an aborted peer: the runtime drops its tasks, and with them the socket, a little later.
pub(crate) async fn nobody_listens(socket: &Path) {
    until(|| std::os::unix::net::UnixStream::connect(socket).is_err()).await;
}
