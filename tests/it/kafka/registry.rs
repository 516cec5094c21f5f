//! A schema registry with the API of Confluent's.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::OnceLock;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::service::{Service, available, free_ports};

/// Path of Confluent's API in Apicurio's registry.
const API: &str = "/apis/ccompat/v7";

pub(crate) struct Registry {
    service: Service,
    port: u16,
    _data: TempDir,
}

impl Registry {
    /// Starts a registry; `None` without Java or Maven (see [`available`]).
    pub(crate) fn start() -> Option<Self> {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        if !*AVAILABLE.get_or_init(|| available(&["--registry"])) {
            return None;
        }
        let port = free_ports().0;
        let data = tempfile::Builder::new().prefix("registry-").tempdir().unwrap();
        let args = [format!("--registry-port={port}")];
        let service = Service::launch("registry", data.path(), "run-registry", &args);
        let mut registry = Self { service, port, _data: data };
        registry
            .service
            .wait(|| request(port, "GET", "/subjects", "").is_ok_and(|(status, _)| status == 200));
        Some(registry)
    }

    /// Returns the registry that tests share; each test needs its own subject names.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Registry>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// Returns the address for `kafka.schema_registry`.
    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}{API}", self.port)
    }

    /// Registers a schema of type `AVRO`, `PROTOBUF` or `JSON`; returns the id that messages' values begin with.
    pub(crate) fn register(&self, subject: &str, kind: &str, schema: &str) -> u32 {
        let body = json!({ "schemaType": kind, "schema": schema });
        let id = self.ask("POST", &format!("/subjects/{subject}/versions"), &body.to_string())["id"].as_u64();
        u32::try_from(id.unwrap()).unwrap()
    }

    /// Returns the schema with this id.
    pub(crate) fn schema(&self, id: u32) -> String {
        self.ask("GET", &format!("/schemas/ids/{id}"), "")["schema"].as_str().unwrap().to_owned()
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, answer) = request(self.port, method, path, body).unwrap();
        assert_eq!(status, 200, "{method} {path}: {answer}");
        serde_json::from_str(&answer).unwrap()
    }
}

/// Makes one request below [`API`]; returns the response's status and body. HTTP/1.0: the body ends with the connection.
fn request(port: u16, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let kind = "application/vnd.schemaregistry.v1+json";
    let length = body.len();
    write!(
        stream,
        "{method} {API}{path} HTTP/1.0\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}
