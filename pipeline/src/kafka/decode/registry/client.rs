//! The HTTP client of the registry, with retries.

use std::collections::{HashSet, VecDeque};
use std::error::Error;
use std::time::{Duration, Instant};

use reqwest::{StatusCode, Url};
use schemas::config::Kafka;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use terminal::Interrupt;

use super::super::error::DecodeError;

/// Minimum and maximum time for one answer, depending on the patience left.
const ANSWER: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(15)];

/// First and longest pause between two attempts; pauses grow.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// Maximum bytes of an answer: a schema is untrusted text.
const BYTES_MAX: usize = 16 << 20;

/// Maximum schemas that one schema may import.
const IMPORTS_MAX: usize = 1_000;

const IS_IT_RUNNING: &str = "is it running, and is kafka.schema_registry its address?";
const IS_IT_ONE: &str =
    "is kafka.schema_registry the address of Confluent's API, with its path if it has one?";
const SEE_AUTH: &str = "kafka.schema_registry_auth must say user:password of one who may read schemas";

/// A schema as it is registered.
pub(super) struct Registered {
    /// `AVRO`, `PROTOBUF` or `JSON`.
    pub(super) kind: String,
    pub(super) text: String,
    pub(super) imports: Imports,
}

/// All schemas that a schema imports, directly and indirectly.
#[derive(Default)]
pub(super) struct Imports {
    /// Name → text.
    pub(super) texts: Vec<(String, String)>,
    /// Why an import is missing, if one is.
    pub(super) problem: Option<String>,
}

/// The registry's answer to both requests: a schema by id, and a version of a subject.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    schema: String,
    /// Left out for Avro.
    schema_type: Option<String>,
    #[serde(default)]
    references: Option<Vec<Reference>>,
}

#[derive(Deserialize)]
struct Reference {
    /// As the referring schema names it.
    name: String,
    subject: String,
    version: i64,
}

/// The registry's answer for an unknown id or subject.
#[derive(Deserialize)]
struct Problem {
    error_code: i64,
}

/// The outcome of one attempt.
enum Outcome {
    Answered(Vec<u8>),
    NotThere,
    /// Worth another attempt.
    Away(String),
}

pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    /// The address without credentials, for messages.
    shown: String,
    auth: Option<(String, String)>,
    patience: Duration,
    interrupt: Interrupt,
}

impl Client {
    pub(super) fn new(kafka: &Kafka, address: &str, interrupt: &Interrupt) -> Result<Self, DecodeError> {
        // The message omits the address, which may contain a password.
        let not_one = |problem: String| DecodeError::Address { problem };
        let base = Url::parse(address).map_err(|error| not_one(error.to_string()))?;
        let mut shown = base.clone();
        let hidden = shown.set_username("").and_then(|()| shown.set_password(None));
        if hidden.is_err() || !["http", "https"].contains(&base.scheme()) {
            return Err(not_one("is not of http or https".into()));
        }
        let auth = kafka.registry_auth()?.map(|auth| match auth.expose().split_once(':') {
            Some((user, password)) => (user.to_owned(), password.to_owned()),
            None => (auth.expose().to_owned(), String::new()),
        });
        let http = reqwest::Client::builder()
            .user_agent(concat!("climber-pilot/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(DecodeError::Client)?;
        let patience = Duration::from_millis(kafka.patience.ms.unsigned_abs());
        let shown = shown.as_str().trim_end_matches('/').to_owned();
        Ok(Self { http, base, shown, auth, patience, interrupt: interrupt.clone() })
    }

    /// A schema and all its imports; `None` if the registry does not know the id.
    pub(super) async fn schema(&self, id: u32) -> Result<Option<Registered>, DecodeError> {
        let question = ["schemas", "ids", &id.to_string()];
        let Some(answer) = self.get::<Answer>(&question).await? else { return Ok(None) };
        let imports = self.imports(answer.references.unwrap_or_default()).await?;
        let kind = answer.schema_type.unwrap_or_else(|| "AVRO".into());
        Ok(Some(Registered { kind, text: answer.schema, imports }))
    }

    async fn imports(&self, references: Vec<Reference>) -> Result<Imports, DecodeError> {
        let mut imports = Imports::default();
        let mut seen = HashSet::new();
        let mut ahead = VecDeque::from(references);
        while let Some(Reference { name, subject, version }) = ahead.pop_front() {
            if !seen.insert(name.clone()) {
                continue;
            }
            if seen.len() > IMPORTS_MAX {
                imports.problem = Some(format!("refers to more than {IMPORTS_MAX} schemas"));
                break;
            }
            let question = ["subjects", &subject, "versions", &version.to_string()];
            match self.get::<Answer>(&question).await? {
                Some(answer) => {
                    ahead.extend(answer.references.unwrap_or_default());
                    imports.texts.push((name, answer.schema));
                }
                None => {
                    let problem =
                        format!("the registry has no version {version} of {subject}, named as {name}");
                    imports.problem = Some(problem);
                    break;
                }
            }
        }
        Ok(imports)
    }

    /// Repeats a request until there is an answer or `kafka.patience` is over.
    async fn get<T: DeserializeOwned>(&self, path: &[&str]) -> Result<Option<T>, DecodeError> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let began = Instant::now();
        let [mut pause, pause_max] = PAUSES;
        loop {
            let left = self.patience.saturating_sub(began.elapsed());
            let asked = self.ask(url.clone(), left.clamp(ANSWER[0], ANSWER[1]));
            let outcome = tokio::select! {
                outcome = asked => outcome?,
                () = self.interrupt.wait() => return Err(DecodeError::Interrupted),
            };
            let problem = match outcome {
                Outcome::Answered(bytes) => match serde_json::from_slice(&bytes) {
                    Ok(answer) => return Ok(Some(answer)),
                    Err(error) => {
                        return Err(self.error(format!("answers what is no schema: {error}"), IS_IT_ONE));
                    }
                },
                Outcome::NotThere => return Ok(None),
                Outcome::Away(problem) => problem,
            };
            let left = self.patience.saturating_sub(began.elapsed());
            if left.is_zero() {
                let tried = format!("{problem}, for {:?} (kafka.patience)", self.patience);
                return Err(self.error(tried, IS_IT_RUNNING));
            }
            tracing::warn!("the schema registry at {} {problem}; asking again in {pause:?}", self.shown);
            tokio::select! {
                () = tokio::time::sleep(pause.min(left)) => {}
                () = self.interrupt.wait() => return Err(DecodeError::Interrupted),
            }
            pause = (pause * 2).min(pause_max);
        }
    }

    async fn ask(&self, url: Url, patience: Duration) -> Result<Outcome, DecodeError> {
        let mut request = self.http.get(url).timeout(patience);
        if let Some((user, password)) = &self.auth {
            request = request.basic_auth(user, Some(password));
        }
        let mut response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Ok(Outcome::Away(format!("cannot be reached: {}", causes(error)))),
        };
        let status = response.status();
        let mut bytes = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() > BYTES_MAX => {
                    let problem = format!("answers more than {BYTES_MAX} bytes");
                    return Err(self.error(problem, IS_IT_ONE));
                }
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => break,
                Err(error) => return Ok(Outcome::Away(format!("stops in its answer: {}", causes(error)))),
            }
        }
        match status {
            status if status.is_success() => Ok(Outcome::Answered(bytes)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(self.error(format!("refuses the credentials ({status})"), SEE_AUTH))
            }
            // A wrong path has the same status without this body; that is an error of the address, not of a message.
            StatusCode::NOT_FOUND
                if serde_json::from_slice::<Problem>(&bytes).is_ok_and(|p| p.error_code >= 40_000) =>
            {
                Ok(Outcome::NotThere)
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Ok(Outcome::Away(format!("answers {status}")))
            }
            status if status.is_server_error() => Ok(Outcome::Away(format!("answers {status}"))),
            status => Err(self.error(format!("answers {status}"), IS_IT_ONE)),
        }
    }

    fn error(&self, problem: String, advice: &'static str) -> DecodeError {
        DecodeError::Registry { url: self.shown.clone(), problem, advice }
    }
}

/// An error with its causes, without the address, which may contain a password.
fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
