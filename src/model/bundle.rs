//! The folder a model is stored in: reading it, checking it, writing it.

use super::calibration::Calibration;
use super::config::{EncoderConfig, LabelAttentionConfig, ModelConfig, WindowConfig};
use super::encoder::Encoder;
use super::gemm::Precision;
use super::heads::Heads;
use super::lexical::LexicalModel;
use super::tokeniser::Tokeniser;
use super::weights::Weights;
use crate::assessment::ModelInfo;
use crate::error::{Error, ErrorKind, Result};
use crate::taxonomy::Taxonomy;
use half::f16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const FORMAT: &str = "lyhord-bundle";
const FORMAT_VERSION: u32 = 1;
pub(crate) const MANIFEST: &str = "manifest.json";
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const WEIGHTS: &str = "model.safetensors";
const TAXONOMY: &str = "taxonomy.toml";
const CALIBRATION: &str = "calibration.json";
const MODEL_CARD: &str = "MODEL_CARD.md";

/// The files that every bundle has beside its manifest.
const PARTS: [&str; 5] = [CONFIG, TOKENIZER, WEIGHTS, TAXONOMY, CALIBRATION];

/// What `manifest.json` says: which files belong to the bundle, their hashes,
/// and where the model comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Always `lyhord-bundle`.
    pub format: String,
    /// The version of the bundle format; this crate reads version 1.
    pub format_version: u32,
    /// The model's name.
    pub name: String,
    /// The model's version.
    pub version: String,
    /// SHA-256 in hexadecimal of each file of the bundle, by file name.
    pub files: BTreeMap<String, String>,
    /// How the model was trained: command, seed, hashes of the data.
    #[serde(default)]
    pub training: serde_json::Value,
    /// How good the model was when it was made.
    #[serde(default)]
    pub metrics: serde_json::Value,
}

/// The files of a bundle, in memory.
///
/// # Examples
///
/// ```
/// let files = lyhord::model::BundleFiles::from_dir("fixtures/tiny-bundle")?;
/// assert_eq!(files.manifest()?.name, "tiny");
/// # Ok::<(), lyhord::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct BundleFiles {
    files: BTreeMap<String, Cow<'static, [u8]>>,
    /// What the bundle is called in messages: its folder, for instance.
    origin: String,
}

impl BundleFiles {
    /// Files by name.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::model::BundleFiles;
    ///
    /// let files = BundleFiles::new([("manifest.json", b"{}".as_slice())]);
    /// assert!(files.manifest().is_err());
    /// ```
    pub fn new<N, B>(files: impl IntoIterator<Item = (N, B)>) -> Self
    where
        N: Into<String>,
        B: Into<Cow<'static, [u8]>>,
    {
        Self {
            files: files
                .into_iter()
                .map(|(name, bytes)| (name.into(), bytes.into()))
                .collect(),
            origin: "the model bundle".to_owned(),
        }
    }

    /// Reads the files that a folder's manifest names.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] when the folder has no manifest or lacks
    /// one of the files, [`ErrorKind::Io`] when one cannot be read.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::{ErrorKind, model::BundleFiles};
    ///
    /// let error = BundleFiles::from_dir("src").err().unwrap();
    /// assert_eq!(error.kind(), ErrorKind::InvalidBundle);
    /// ```
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let mut bundle = Self {
            files: BTreeMap::new(),
            origin: dir.display().to_string(),
        };
        let manifest = std::fs::read(dir.join(MANIFEST)).map_err(|error| {
            bundle.invalid(format!(
                "is not a model bundle: {MANIFEST} cannot be read there: {error}"
            ))
        })?;
        bundle.files.insert(MANIFEST.to_owned(), manifest.into());
        for name in bundle.manifest()?.files.into_keys() {
            let path = dir.join(&name);
            let bytes = std::fs::read(&path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => bundle.missing(&name),
                _ => Error::io(&path, "read", error),
            })?;
            bundle.files.insert(name, bytes.into());
        }
        Ok(bundle)
    }

    /// The bundle that was compiled into this program.
    #[cfg(feature = "embedded")]
    pub(crate) fn embedded() -> Result<Self> {
        if embedded::FILES.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidBundle,
                "this program was built without a model: models/lyhord-small-sv was missing; name a model folder",
            ));
        }
        Ok(Self {
            origin: "the embedded model".to_owned(),
            ..Self::new(embedded::FILES.iter().map(|(name, bytes)| (*name, *bytes)))
        })
    }

    #[cfg(feature = "hub")]
    pub(super) fn with_origin(mut self, origin: String) -> Self {
        self.origin = origin;
        self
    }

    #[cfg(feature = "hub")]
    pub(super) fn insert(&mut self, name: String, bytes: Vec<u8>) {
        self.files.insert(name, bytes.into());
    }

    /// The parsed manifest, its format and version checked.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] when there is no manifest, it isn't one of a
    /// bundle, or has an unknown format version.
    ///
    /// # Examples
    ///
    /// ```
    /// let files = lyhord::model::BundleFiles::from_dir("fixtures/tiny-bundle")?;
    /// assert_eq!(files.manifest()?.format_version, 1);
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn manifest(&self) -> Result<Manifest> {
        #[derive(Deserialize)]
        struct Format {
            format: String,
            format_version: u32,
        }
        let json = self.file(MANIFEST)?;
        let unreadable = |error| {
            self.invalid(format!("has a {MANIFEST} that is not one of a bundle"))
                .with_source(error)
        };
        // The version is read first: another one may have other fields.
        let Format {
            format,
            format_version,
        } = serde_json::from_slice(json).map_err(unreadable)?;
        if format != FORMAT {
            return Err(self.invalid(format!(
                "has a {MANIFEST} of the format `{format}`, not `{FORMAT}`"
            )));
        }
        if format_version != FORMAT_VERSION {
            return Err(self.invalid(format!(
                "has the bundle format version {format_version}; this engine reads version {FORMAT_VERSION}"
            )));
        }
        let manifest: Manifest = serde_json::from_slice(json).map_err(unreadable)?;
        for name in manifest.files.keys() {
            let mut parts = Path::new(name).components();
            let plain = matches!(
                (parts.next(), parts.next()),
                (Some(std::path::Component::Normal(_)), None)
            );
            if !plain || name.contains(['/', '\\']) {
                return Err(self.invalid(format!(
                    "has `{name}` in its {MANIFEST}, which is not a plain file name"
                )));
            }
        }
        if let Some(name) = PARTS
            .iter()
            .find(|name| !manifest.files.contains_key(**name))
        {
            return Err(self.invalid(format!("has a {MANIFEST} without a hash of {name}")));
        }
        Ok(manifest)
    }

    /// Compares every file with the hash in the manifest.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] names the first file that is missing,
    /// truncated or different.
    ///
    /// # Examples
    ///
    /// ```
    /// let files = lyhord::model::BundleFiles::from_dir("fixtures/tiny-bundle")?;
    /// files.verify()?;
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn verify(&self) -> Result<()> {
        for (name, stated) in &self.manifest()?.files {
            let bytes = self.file(name)?;
            let found = sha256(bytes);
            if !found.eq_ignore_ascii_case(stated) {
                if name == WEIGHTS
                    && let Some(complaint) = truncated(bytes)
                {
                    return Err(self.invalid(format!("has a {name} that {complaint}")));
                }
                return Err(self.invalid(format!(
                    "has a {name} of {} bytes with the sha256 {found}; its {MANIFEST} states {stated}",
                    bytes.len()
                )));
            }
        }
        Ok(())
    }

    fn file(&self, name: &str) -> Result<&[u8]> {
        match self.files.get(name) {
            Some(bytes) => Ok(bytes),
            None => Err(self.missing(name)),
        }
    }

    fn missing(&self, name: &str) -> Error {
        self.invalid(format!("has no file {name}"))
    }

    fn invalid(&self, message: impl std::fmt::Display) -> Error {
        Error::new(
            ErrorKind::InvalidBundle,
            format!("{} {message}", self.origin),
        )
    }
}

impl std::fmt::Debug for BundleFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BundleFiles")
            .field("origin", &self.origin)
            .field("files", &self.files.keys())
            .finish()
    }
}

#[cfg(feature = "embedded")]
mod embedded {
    // Written by build.rs: `FILES`, name and bytes of each file of the bundle.
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));
}

/// A loaded model: everything between a text and its probabilities.
pub(crate) struct Model {
    pub info: Arc<ModelInfo>,
    pub taxonomy: Arc<Taxonomy>,
    pub config: ModelConfig,
    pub tokeniser: Tokeniser,
    pub encoder: Encoder,
    pub heads: Heads,
    pub lexical: Option<LexicalModel>,
    pub calibration: Calibration,
}

impl Model {
    /// Checks a bundle and packs its weights for this machine.
    pub fn load(bundle: &BundleFiles, precision: Precision) -> Result<Self> {
        let manifest = bundle.manifest()?;
        // Hashing and packing take about as long as each other.
        let (verified, loaded) = std::thread::scope(|scope| {
            let verified = scope.spawn(|| bundle.verify());
            let loaded = Self::load_parts(bundle, &manifest, precision);
            (joined(verified), loaded)
        });
        verified?;
        loaded.map_err(|error| {
            // Whatever is wrong with a part makes the bundle unusable.
            Error::new(
                ErrorKind::InvalidBundle,
                format!("{}: {error}", bundle.origin),
            )
        })
    }

    fn load_parts(bundle: &BundleFiles, manifest: &Manifest, precision: Precision) -> Result<Self> {
        let config = ModelConfig::from_json(bundle.file(CONFIG)?)?;
        for (field, ours, stated) in [
            ("name", &config.name, &manifest.name),
            ("version", &config.version, &manifest.version),
        ] {
            if ours != stated {
                return Err(Error::new(
                    ErrorKind::InvalidBundle,
                    format!("{CONFIG} states the {field} `{ours}`, {MANIFEST} `{stated}`"),
                ));
            }
        }
        let taxonomy = std::str::from_utf8(bundle.file(TAXONOMY)?).map_err(|error| {
            Error::new(ErrorKind::InvalidBundle, format!("{TAXONOMY} is not UTF-8"))
                .with_source(error)
        })?;
        let taxonomy = Taxonomy::from_toml(taxonomy)
            .map_err(|error| Error::new(error.kind(), format!("{TAXONOMY}: {error}")))?;
        let calibration = Calibration::from_json(bundle.file(CALIBRATION)?, &taxonomy)?;
        let weights = Weights::new(bundle.file(WEIGHTS)?)?;
        let tokenizer = bundle.file(TOKENIZER)?;
        let (tokeniser, encoder) = std::thread::scope(|scope| {
            let tokeniser =
                scope.spawn(|| Tokeniser::from_json(tokenizer, config.encoder.vocab_size));
            let encoder = Encoder::from_weights(&config.encoder, &weights, precision);
            (joined(tokeniser), encoder)
        });
        let (encoder, tokeniser) = (encoder?, tokeniser?);
        let heads = Heads::from_weights(
            &taxonomy,
            config.encoder.hidden_size,
            config.label_attention.attention_size,
            &weights,
        )?;
        let lexical = config.lexical.as_ref().map(|lexical| {
            LexicalModel::from_tensors(lexical, taxonomy.num_logits(), |name, shape| {
                weights.view(name, shape)
            })
        });
        let lexical = lexical.transpose()?;
        if let Some(name) = weights.unread().first() {
            return Err(super::weights::invalid(format!(
                "has a tensor {name} that no part of the model uses"
            )));
        }
        Ok(Self {
            info: Arc::new(ModelInfo::new(
                &config.name,
                &config.version,
                sha256(bundle.file(MANIFEST)?),
                taxonomy.version(),
                precision,
            )),
            taxonomy: Arc::new(taxonomy),
            config,
            tokeniser,
            encoder,
            heads,
            lexical,
            calibration,
        })
    }
}

/// What a thread of the loading gave.
fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::InvalidBundle,
            "a part of the bundle is damaged",
        ))
    })
}

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorType {
    /// Half precision.
    F16,
    /// Single precision.
    F32,
}

/// A tensor to write into a bundle.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Its Hugging Face name, without prefix.
    pub name: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its values, row by row.
    pub values: Vec<f32>,
    /// How it is stored.
    pub dtype: TensorType,
}

/// What a bundle is made of.
///
/// # Examples
///
/// `examples/make_tiny_bundle.rs` writes one from nothing.
#[derive(Clone, Debug)]
pub struct BundleParts {
    /// The model's name.
    pub name: String,
    /// The model's version.
    pub version: String,
    /// The encoder's shape.
    pub encoder: EncoderConfig,
    /// Width of the label attention.
    pub attention_size: usize,
    /// The lexical path, if the model has one.
    pub lexical: Option<LexicalModel>,
    /// How long texts are cut.
    pub window: WindowConfig,
    /// The bytes of `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// The text of `taxonomy.toml`.
    pub taxonomy: String,
    /// The text of `calibration.json`.
    pub calibration: String,
    /// The text of `MODEL_CARD.md`.
    pub model_card: String,
    /// The tensors of `model.safetensors`.
    pub tensors: Vec<NamedTensor>,
    /// For the manifest: how the model was trained.
    pub training: serde_json::Value,
    /// For the manifest: how good the model is.
    pub metrics: serde_json::Value,
}

impl BundleParts {
    /// Writes the bundle's files into a folder, made if it is missing, and
    /// checks that the bundle can be loaded.
    ///
    /// The manifest is written last: a folder whose writing was cut short is
    /// not a bundle.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] when a file cannot be written,
    /// [`ErrorKind::InvalidBundle`] when the parts don't fit each other.
    ///
    /// # Examples
    ///
    /// See `examples/make_tiny_bundle.rs`.
    pub fn write(&self, dir: impl AsRef<Path>) -> Result<Manifest> {
        let dir = dir.as_ref();
        let files = self.files()?;
        Model::load(&files, Precision::F32)?;
        std::fs::create_dir_all(dir).map_err(|error| Error::io(dir, "make", error))?;
        let manifest = dir.join(MANIFEST);
        match std::fs::remove_file(&manifest) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&manifest, "replace", error));
            }
            _ => {}
        }
        let last = |name: &&String| name.as_str() == MANIFEST;
        let names = files.files.keys();
        for name in names.clone().filter(|n| !last(n)).chain(names.filter(last)) {
            let path = dir.join(name);
            std::fs::write(&path, files.file(name)?)
                .map_err(|error| Error::io(&path, "write", error))?;
        }
        files.manifest()
    }

    /// The bundle's files with their manifest.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] when a tensor doesn't have as many values
    /// as its shape says, or one that f16 cannot hold.
    ///
    /// # Examples
    ///
    /// See `examples/make_tiny_bundle.rs`.
    pub fn files(&self) -> Result<BundleFiles> {
        let config = ModelConfig {
            name: self.name.clone(),
            version: self.version.clone(),
            encoder: self.encoder.clone(),
            label_attention: LabelAttentionConfig {
                attention_size: self.attention_size,
            },
            lexical: self
                .lexical
                .as_ref()
                .map(|lexical| lexical.config().clone()),
            window: self.window,
        };
        let mut files = BTreeMap::from([
            (CONFIG, json(&config)?),
            (TOKENIZER, self.tokenizer.clone()),
            (WEIGHTS, self.safetensors()?),
            (TAXONOMY, self.taxonomy.clone().into_bytes()),
            (CALIBRATION, self.calibration.clone().into_bytes()),
            (MODEL_CARD, self.model_card.clone().into_bytes()),
        ]);
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            name: self.name.clone(),
            version: self.version.clone(),
            files: files
                .iter()
                .map(|(name, bytes)| ((*name).to_owned(), sha256(bytes)))
                .collect(),
            training: self.training.clone(),
            metrics: self.metrics.clone(),
        };
        files.insert(MANIFEST, json(&manifest)?);
        Ok(BundleFiles::new(files))
    }

    fn safetensors(&self) -> Result<Vec<u8>> {
        let lexical = self.lexical.as_ref().map(LexicalModel::tensors);
        let mut stored: Vec<(&str, &[usize], Dtype, Vec<u8>)> = Vec::new();
        for tensor in &self.tensors {
            let wrong = |message: &str| {
                super::weights::invalid(format!("cannot hold {}: {message}", tensor.name))
            };
            if tensor.shape.iter().product::<usize>() != tensor.values.len() {
                return Err(wrong("it has another number of values than its shape"));
            }
            let values = tensor.values.iter();
            let (dtype, bytes) = match tensor.dtype {
                TensorType::F32 => (Dtype::F32, values.flat_map(|x| x.to_le_bytes()).collect()),
                TensorType::F16 => {
                    if !tensor.values.iter().all(|x| f16::from_f32(*x).is_finite()) {
                        return Err(wrong("a value is not finite in f16"));
                    }
                    let halves = values.flat_map(|x| f16::from_f32(*x).to_le_bytes());
                    (Dtype::F16, halves.collect())
                }
            };
            stored.push((&tensor.name, &tensor.shape, dtype, bytes));
        }
        for tensor in lexical.iter().flatten() {
            stored.push((
                tensor.name,
                &tensor.shape,
                tensor.dtype,
                tensor.data.clone(),
            ));
        }
        let mut views = Vec::with_capacity(stored.len());
        for (name, shape, dtype, bytes) in &stored {
            let view = TensorView::new(*dtype, shape.to_vec(), bytes).map_err(|error| {
                super::weights::invalid(format!("cannot hold {name}")).with_source(error)
            })?;
            views.push((*name, view));
        }
        safetensors::serialize(views, None)
            .map_err(|error| super::weights::invalid("cannot be made").with_source(error))
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec_pretty(value).map_err(|error| {
        Error::new(ErrorKind::InvalidBundle, "a part cannot be written as JSON").with_source(error)
    })?;
    json.push(b'\n');
    Ok(json)
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// What is wrong with safetensors that don't match their hash, where it shows.
fn truncated(bytes: &[u8]) -> Option<String> {
    let error = SafeTensors::deserialize(bytes).err()?;
    Some(format!(
        "is truncated or damaged, at {} bytes: {error}",
        bytes.len()
    ))
}
