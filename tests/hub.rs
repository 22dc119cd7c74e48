//! A model named on a hub is fetched, checked like any bundle and kept; what
//! goes wrong is said. The hub here is a small server on loopback that answers
//! what the Hugging Face client asks for.
#![cfg(feature = "hub")]

use lyhord::model::HubModel;
use lyhord::{Classifier, ClassifierOptions, ErrorKind, Report};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How a file is served.
#[derive(Clone)]
enum Served {
    Whole(Vec<u8>),
    /// All of it is announced, half of it sent.
    BrokenOff(Vec<u8>),
    /// Half of it is announced and sent, as if it were all.
    Short(Vec<u8>),
    Error(u16),
}

struct Hub {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
    files: Arc<Mutex<BTreeMap<String, Served>>>,
}

impl Hub {
    /// Serves the repository `org/tiny`.
    fn start(files: BTreeMap<String, Served>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Self {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            requests: Arc::default(),
            files: Arc::new(Mutex::new(files)),
        };
        let (requests, files) = (Arc::clone(&hub.requests), Arc::clone(&hub.files));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let files = files.lock().unwrap().clone();
                // A client that hangs up early is no concern of the server.
                let _ = answer(stream, &files, &requests);
            }
        });
        hub
    }

    fn model(&self, cache: &tempfile::TempDir) -> HubModel {
        HubModel::new("org/tiny")
            .endpoint(&self.endpoint)
            .cache_dir(cache.path())
    }

    fn serve(&self, name: &str, served: Served) {
        self.files.lock().unwrap().insert(name.to_owned(), served);
    }

    fn requests(&self, method: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests
            .iter()
            .filter(|line| line.starts_with(method))
            .count()
    }
}

fn answer(
    stream: TcpStream,
    files: &BTreeMap<String, Served>,
    requests: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    requests.lock().unwrap().push(request.trim().to_owned());
    let mut stream = reader.into_inner();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let file = path
        .strip_prefix("/org/tiny/resolve/main/")
        .or_else(|| path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")));
    let (announced, sent) = match file.map(|file| files.get(file)) {
        Some(Some(Served::Whole(bytes))) => (bytes.len(), bytes.as_slice()),
        Some(Some(Served::BrokenOff(bytes))) => (bytes.len(), &bytes[..bytes.len() / 2]),
        Some(Some(Served::Short(bytes))) => (bytes.len() / 2, &bytes[..bytes.len() / 2]),
        Some(Some(Served::Error(status))) => {
            write!(
                stream,
                "HTTP/1.1 {status} Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )?;
            return Ok(());
        }
        missing => {
            let code = match missing {
                Some(_) => "EntryNotFound",
                None => "RepoNotFound",
            };
            write!(
                stream,
                "HTTP/1.1 404 Not Found\r\nx-error-code: {code}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )?;
            return Ok(());
        }
    };
    let etag: String = Sha256::digest(path.rsplit('/').next().unwrap_or_default())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\netag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-length: {announced}\r\nconnection: close\r\n\r\n"
    )?;
    if request.starts_with("GET") {
        stream.write_all(sent)?;
    }
    stream.flush()
}

fn tiny() -> BTreeMap<String, Served> {
    std::fs::read_dir("fixtures/tiny-bundle")
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, Served::Whole(std::fs::read(path).unwrap()))
        })
        .collect()
}

fn weights() -> Vec<u8> {
    std::fs::read("fixtures/tiny-bundle/model.safetensors").unwrap()
}

fn options() -> ClassifierOptions {
    ClassifierOptions::new().threads(1)
}

#[test]
fn a_model_on_a_hub_is_the_model_in_its_folder() {
    let (hub, cache) = (Hub::start(tiny()), tempfile::tempdir().unwrap());
    let fetched = options().from_hub(hub.model(&cache)).unwrap();
    let local = Classifier::from_dir("fixtures/tiny-bundle").unwrap();
    assert_eq!(fetched.model(), local.model());
    let report = Report::new("Mamma ramlade i natt.");
    assert_eq!(
        fetched.assess(&report).unwrap(),
        local.assess(&report).unwrap()
    );
    // Only names of files went out.
    let requests = hub.requests.lock().unwrap();
    assert!(
        requests
            .iter()
            .all(|line| line.contains("/org/tiny/resolve/")),
        "{requests:?}"
    );
}

#[test]
fn a_model_that_was_fetched_before_is_not_fetched_again_and_loads_without_a_network() {
    let (hub, cache) = (Hub::start(tiny()), tempfile::tempdir().unwrap());
    options().from_hub(hub.model(&cache)).unwrap();
    let fetched = hub.requests("GET");
    options().from_hub(hub.model(&cache)).unwrap();
    assert_eq!(hub.requests("GET"), fetched);

    let unreachable = HubModel::new("org/tiny")
        .endpoint("http://127.0.0.1:1")
        .cache_dir(cache.path());
    options().from_hub(unreachable).unwrap();
}

#[test]
fn a_revision_that_is_a_commit_is_asked_for_by_its_name() {
    let (hub, cache) = (Hub::start(tiny()), tempfile::tempdir().unwrap());
    options()
        .from_hub(hub.model(&cache).revision(COMMIT))
        .unwrap();
    assert!(
        hub.requests
            .lock()
            .unwrap()
            .iter()
            .all(|line| line.contains(COMMIT))
    );
}

#[test]
fn a_repository_that_is_not_there_is_a_network_error_with_its_name() {
    let (hub, cache) = (Hub::start(tiny()), tempfile::tempdir().unwrap());
    let model = HubModel::new("org/other")
        .endpoint(&hub.endpoint)
        .cache_dir(cache.path());
    let error = options().from_hub(model).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    assert!(error.to_string().contains("org/other"), "{error}");
    assert!(error.to_string().contains("not found"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_a_network_error_with_its_name() {
    for name in ["manifest.json", "tokenizer.json"] {
        let (hub, cache) = (Hub::start(tiny()), tempfile::tempdir().unwrap());
        hub.files.lock().unwrap().remove(name);
        let error = options().from_hub(hub.model(&cache)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Network, "{error}");
        let message = error.to_string();
        assert!(
            message.contains(name) && message.contains("not found"),
            "{message}"
        );
    }
}

#[test]
fn a_transfer_that_breaks_off_is_a_network_error_and_heals() {
    let (hub, cache) = (Hub::start(tiny()), tempfile::tempdir().unwrap());
    hub.serve("model.safetensors", Served::BrokenOff(weights()));
    let error = options().from_hub(hub.model(&cache)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    hub.serve("model.safetensors", Served::Whole(weights()));
    options().from_hub(hub.model(&cache)).unwrap();
}

#[test]
fn a_truncated_file_on_the_hub_is_an_invalid_bundle_and_heals() {
    let (hub, cache) = (Hub::start(tiny()), tempfile::tempdir().unwrap());
    hub.serve("model.safetensors", Served::Short(weights()));
    let error = options().from_hub(hub.model(&cache)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidBundle, "{error}");
    let message = error.to_string();
    assert!(message.contains("org/tiny"), "{message}");
    assert!(
        message.contains("model.safetensors that is truncated"),
        "{message}"
    );
    hub.serve("model.safetensors", Served::Whole(weights()));
    options().from_hub(hub.model(&cache)).unwrap();
}

#[test]
fn a_hub_that_fails_is_a_network_error_with_its_status() {
    let (hub, cache) = (Hub::start(tiny()), tempfile::tempdir().unwrap());
    for (status, part) in [(403, "orbidden"), (503, "503")] {
        hub.serve("manifest.json", Served::Error(status));
        let error = options().from_hub(hub.model(&cache)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Network, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn no_network_is_a_network_error_with_the_address() {
    let cache = tempfile::tempdir().unwrap();
    // Nothing listens on a port that was just given back.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let model = HubModel::new("org/tiny")
        .endpoint(&endpoint)
        .cache_dir(cache.path());
    let error = options().from_hub(model).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    assert!(error.to_string().contains(&endpoint), "{error}");
}

#[test]
fn a_model_that_is_not_named_as_owner_and_name_is_refused() {
    for name in ["tiny", "", "/tiny", "org/", "a/b/c"] {
        let error = options().from_hub(name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
    }
}
