//! Models on a Hugging Face hub, fetched when they are named.

use super::bundle::{BundleFiles, MANIFEST, sha256};
use crate::error::{Error, ErrorKind, Result};
use hf_hub::{HFClient, HFError, HFRepositorySync, RepoTypeModel};
use std::path::{Path, PathBuf};

/// How often a request is tried again after the connection failed.
const RETRIES: usize = 2;

/// A model bundle in a repository on a Hugging Face hub.
///
/// A text is not needed to fetch a model and none is sent. What has been
/// fetched is kept in the hub's cache folder; a model that was fetched before
/// loads without a network.
///
/// # Examples
///
/// ```no_run
/// use lyhord::{Classifier, ClassifierOptions, model::HubModel};
///
/// let classifier = Classifier::from_hub("org/name")?;
/// // One commit, from a hub of one's own:
/// let model = HubModel::new("org/name")
///     .revision("8f2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e")
///     .endpoint("https://hub.example.org");
/// let classifier = ClassifierOptions::new().from_hub(model)?;
/// # Ok::<(), lyhord::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    repository: String,
    revision: Option<String>,
    endpoint: Option<String>,
    cache_dir: Option<PathBuf>,
}

impl From<&str> for HubModel {
    fn from(repository: &str) -> Self {
        Self::new(repository)
    }
}

impl HubModel {
    /// The model in the repository `owner/name`.
    ///
    /// # Examples
    ///
    /// ```
    /// use lyhord::model::HubModel;
    ///
    /// assert_eq!(HubModel::new("org/name"), "org/name".into());
    /// ```
    pub fn new(repository: impl Into<String>) -> Self {
        Self {
            repository: repository.into(),
            revision: None,
            endpoint: None,
            cache_dir: None,
        }
    }

    /// The branch, tag or commit. Default: `main`.
    ///
    /// # Examples
    ///
    /// ```
    /// let model = lyhord::model::HubModel::new("org/name").revision("v1.0.0");
    /// assert_ne!(model, "org/name".into());
    /// ```
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = Some(revision.into());
        self
    }

    /// The hub's address. Default: the environment variable `HF_ENDPOINT`, else
    /// `https://huggingface.co`.
    ///
    /// # Examples
    ///
    /// ```
    /// let model = lyhord::model::HubModel::new("org/name").endpoint("http://127.0.0.1:8080");
    /// assert_ne!(model, "org/name".into());
    /// ```
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// The folder that keeps what was fetched. Default: that of the Hugging Face
    /// tools (`HF_HUB_CACHE`, `HF_HOME`, `~/.cache/huggingface/hub`).
    ///
    /// # Examples
    ///
    /// ```
    /// let model = lyhord::model::HubModel::new("org/name").cache_dir("/var/cache/models");
    /// assert_ne!(model, "org/name".into());
    /// ```
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    /// Fetches the bundle's files, as far as the cache lacks them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Network`] when the hub cannot be reached, doesn't have the
    /// repository or a file of it, or breaks off; [`ErrorKind::InvalidBundle`]
    /// when the repository holds no bundle; [`ErrorKind::InvalidOption`] when
    /// the repository isn't named as `owner/name`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// let files = lyhord::model::HubModel::new("org/name").download()?;
    /// files.verify()?;
    /// # Ok::<(), lyhord::Error>(())
    /// ```
    pub fn download(&self) -> Result<BundleFiles> {
        let (owner, name) = match self.repository.split_once('/') {
            Some((owner, name)) if !owner.is_empty() && !name.is_empty() && !name.contains('/') => {
                (owner, name)
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidOption,
                    format!(
                        "the hub model `{}` is not named as owner/name",
                        self.repository
                    ),
                ));
            }
        };
        let mut client = HFClient::builder().retry_max_attempts(RETRIES);
        if let Some(endpoint) = &self.endpoint {
            client = client.endpoint(endpoint);
        }
        if let Some(dir) = &self.cache_dir {
            client = client.cache_dir(dir);
        }
        let client = client
            .build_sync()
            .map_err(|error| self.failed("the hub client cannot be made", error))?;
        let repository = client.model(owner, name);

        let revision = self.revision.as_deref().unwrap_or("main");
        let manifest = self.fetch(&repository, MANIFEST, revision, false)?;
        // The other files are taken from the commit the manifest belongs to,
        // whose name the cache gives to the folder.
        let commit = commit(&manifest).unwrap_or(revision).to_owned();
        let mut files = BundleFiles::new([(MANIFEST, read(&manifest)?)])
            .with_origin(format!("the hub model {}", self.repository));
        for (file, hash) in files.manifest()?.files {
            let mut bytes = read(&self.fetch(&repository, &file, &commit, false)?)?;
            if !sha256(&bytes).eq_ignore_ascii_case(&hash) {
                // What the cache holds may be left from a download that broke.
                bytes = read(&self.fetch(&repository, &file, &commit, true)?)?;
            }
            files.insert(file, bytes);
        }
        Ok(files)
    }

    fn fetch(
        &self,
        repository: &HFRepositorySync<RepoTypeModel>,
        file: &str,
        revision: &str,
        anew: bool,
    ) -> Result<PathBuf> {
        repository
            .download_file()
            .filename(file)
            .revision(revision)
            .force_download(anew)
            .send()
            .map_err(|error| self.failed(&format!("{file} cannot be fetched"), error))
    }

    fn failed(&self, what: &str, error: HFError) -> Error {
        let at = match &self.endpoint {
            Some(endpoint) => format!(" at {endpoint}"),
            None => String::new(),
        };
        Error::new(
            ErrorKind::Network,
            format!("the hub model {}{at}: {what}", self.repository),
        )
        .with_source(error)
    }
}

/// The commit of a file in the cache: `snapshots/COMMIT/FILE`.
fn commit(path: &Path) -> Option<&str> {
    path.parent()?.file_name()?.to_str()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::io(path, "read", error))
}
