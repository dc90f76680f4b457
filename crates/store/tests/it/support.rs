//! Small artifacts with known bytes, and mounts that end with their test.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use ::store::{BlobIdentity, BlobProof, ContentFile, Contents, Landing, OpenedOutput, Output, OutputDir};
use modelpack::{
    digest::Sha256Digest,
    layout::{BlobIndex, PIECE_BYTES, PieceIndex, PieceLayout},
    manifest::{Archive, Packing},
    piece_tree::{Anchored, Landed, PieceTree, TreeBuilder, Verified},
    selection::Matched,
};

/// A piece and a bit, so that there is a boundary and a short tail.
pub(crate) const TWO_PIECES: usize = ONE_PIECE + 1000;

/// [`PIECE_BYTES`] as a length in memory.
const ONE_PIECE: usize = 1 << 20;
const _: () = assert!(ONE_PIECE as u64 == PIECE_BYTES);

/// An artifact whose bytes are known.
pub(crate) struct Artifact {
    pub(crate) bytes: Vec<Vec<u8>>,
    pub(crate) trees: Vec<PieceTree<Anchored>>,
    pub(crate) contents: Contents,
}

/// Bytes that differ between blobs and between pieces.
pub(crate) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at % 251) ^ (at >> 12)).to_le_bytes()[0] ^ seed).collect()
}

fn tree_of(bytes: &[u8]) -> PieceTree<Anchored> {
    let mut builder = TreeBuilder::new(bytes.len() as u64);
    for (at, piece) in (0..).zip(bytes.chunks(ONE_PIECE)) {
        builder.add(modelpack::layout::BlobPiece(at), piece);
    }
    let root = modelpack::digest::Blake3Root::new(*blake3::hash(bytes).as_bytes());
    builder.finish().unwrap().anchored(root).unwrap()
}

impl Artifact {
    /// Blobs of these bytes; `files` are path and blob number. What lies in `tools` is executable.
    pub(crate) fn new(bytes: Vec<Vec<u8>>, files: &[(&str, u32)]) -> Self {
        let trees: Vec<_> = bytes.iter().map(|bytes| tree_of(bytes)).collect();
        let blobs: Vec<_> = bytes
            .iter()
            .zip(&trees)
            .map(|(bytes, tree)| BlobIdentity {
                digest: Sha256Digest::of(bytes),
                size: bytes.len() as u64,
                root: Some(tree.root()),
            })
            .collect();
        let files = files
            .iter()
            .map(|(path, blob)| ContentFile {
                path: (*path).to_owned(),
                blob: BlobIndex(*blob),
                is_weight: path.ends_with(".safetensors"),
                mode: if path.starts_with("tools/") { 0o755 } else { 0o644 },
                modified: None,
            })
            .collect::<Vec<_>>();
        let layout = PieceLayout::new(bytes.iter().map(|bytes| bytes.len() as u64).collect()).unwrap();
        let named: Vec<String> = blobs.iter().map(|blob| blob.digest.hex()).collect();
        let digest = Sha256Digest::of(format!("{named:?} {files:?}").as_bytes());
        let contents = Contents {
            digest,
            blobs,
            files,
            archives: Vec::new(),
            layout,
            selection: None,
            matched: Matched::default(),
        };
        Self { bytes, trees, contents }
    }

    /// The same, and these blobs are archives.
    pub(crate) fn with_archives(mut self, archives: &[(u32, Packing)]) -> Self {
        let archive = |(layer, (blob, packing)): (usize, &(u32, Packing))| Archive {
            layer,
            blob: BlobIndex(*blob),
            kind: None,
            packing: *packing,
            name: None,
        };
        self.contents.archives = archives.iter().enumerate().map(archive).collect();
        self
    }

    /// A weight file of two pieces, a config, a script in a folder, and the config again under another name.
    pub(crate) fn small() -> Self {
        Self::new(
            vec![pattern(1, TWO_PIECES), pattern(2, 300), pattern(3, 40)],
            &[
                ("model.safetensors.index.json", 1),
                ("model-1.safetensors", 0),
                ("config.json", 1),
                ("tools/run.sh", 2),
            ],
        )
    }

    pub(crate) fn piece(&self, piece: PieceIndex) -> &[u8] {
        let span = self.contents.layout.span(piece);
        let start = usize::try_from(span.offset).unwrap();
        &self.bytes[span.blob.0 as usize][start..start + span.len as usize]
    }

    pub(crate) fn verified(&self, piece: PieceIndex) -> Verified<Vec<u8>> {
        let span = self.contents.layout.span(piece);
        let landed = Landed::new(span.in_blob, self.piece(piece).to_vec());
        self.trees[span.blob.0 as usize].verify(landed).unwrap()
    }

    pub(crate) fn commit_all(&self, landing: &Landing) {
        for piece in self.contents.layout.all().pieces() {
            landing.commit(piece, &self.verified(piece)).unwrap();
        }
    }

    /// Rechecks every claim, as a peer does when it resumes; says how many pieces were still good.
    pub(crate) fn resume(&self, landing: &Landing) -> u32 {
        let mut good = 0;
        for claim in landing.claims() {
            let span = self.contents.layout.span(claim.piece);
            let mut buf = vec![0; span.len as usize];
            good +=
                u32::from(landing.recheck(claim.piece, &self.trees[span.blob.0 as usize], &mut buf).unwrap());
        }
        good
    }

    pub(crate) fn proofs(&self, landing: &Landing) -> Vec<BlobProof> {
        self.contents.layout.blobs().map(|blob| landing.prove_verified(blob).unwrap()).collect()
    }

    pub(crate) fn open(&self, dir: &Path) -> Output {
        match OutputDir::open(dir, self.contents.clone()).unwrap() {
            OpenedOutput::Fresh(output) => output,
            OpenedOutput::Complete(_) => panic!("{} is complete", dir.display()),
        }
    }

    /// Every path has the bytes of its blob.
    pub(crate) fn assert_published(&self, dir: &Path) {
        for file in &self.contents.files {
            let found = fs::read(dir.join(&file.path)).unwrap();
            assert!(found == self.bytes[file.blob.0 as usize], "{} differs", file.path);
        }
    }
}

/// Every path below `dir`, sorted, with the bytes of files.
pub(crate) fn snapshot(dir: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                open.push(path.clone());
                found.push((path, None));
            } else {
                let bytes = fs::read(&path).unwrap_or_default();
                found.push((path, Some(bytes)));
            }
        }
    }
    found.sort();
    found
}

/// Says why a test does nothing on this machine; `scripts/test` counts it as skipped.
pub(crate) fn skip(why: &str) {
    eprintln!("skipped: {why}");
    if let Some(list) = std::env::var_os("MODELCAST_SKIPPED") {
        let mut list = fs::OpenOptions::new().append(true).create(true).open(list).unwrap();
        // In one write, as other tests write there at the same time.
        list.write_all(format!("skipped: {}\n", why.replace('\n', " ")).as_bytes()).unwrap();
    }
}

/// A tmpfs of its own size, unmounted at the end.
pub(crate) struct Mount {
    pub(crate) dir: tempfile::TempDir,
}

impl Mount {
    /// `None`, and says why, where this process may not mount.
    pub(crate) fn tmpfs(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).output();
        match done {
            Ok(output) if output.status.success() => Some(Self { dir }),
            other => {
                skip(&format!("cannot mount a tmpfs here: {other:?}"));
                None
            }
        }
    }

    pub(crate) fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let done = Command::new("mount").args(["-o", &options]).arg(self.dir.path()).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(self.dir.path()).status();
        assert!(done.is_ok_and(|status| status.success()), "{} stays mounted", self.dir.path().display());
    }
}
