//! Secrets, and how they are kept out of everything that programs write: models, records, lock files, messages.
//!
//! A configuration never holds a secret: validation refuses it, and requires `env:NAME` or `file:PATH` instead. Text quoted
//! before validation (a `--set` argument, a line that does not parse) goes through [`shown_setting`] and [`may_hold`].

use std::fmt;

/// A value read from `env:NAME` or `file:PATH`. It has no `Display` and is never stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret value.
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// Returns the value, to present it to a server. Never print it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

/// Replacement for a secret in output.
pub const HIDDEN: &str = "***";

/// Parts of setting names that mark a secret: ours, and those of librdkafka 2.12 that hold a credential. Parts also match
/// misspelt keys, which must not be stored either.
const NAMES: [&str; 9] = [
    "passw",
    "passphrase",
    "pwd",
    "secret",
    "key.pem",
    "ssl_key",
    "oauthbearer.config",
    "registry_auth",
    "private_key",
];

/// Returns true if a setting of this name is a secret. The path of a key file (`ssl.key.location`) is none.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    NAMES.iter().any(|part| name.contains(part))
}

/// Returns true if the text contains an address with a user or password, such as `https://user:password@host`.
pub fn has_userinfo(text: &str) -> bool {
    text.match_indices("://").any(|(at, mark)| {
        let rest = &text[at + mark.len()..];
        let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
        authority.contains('@')
    })
}

/// Returns true if a line of a configuration may hold a secret.
pub fn may_hold(line: &str) -> bool {
    is_secret(line) || has_userinfo(line) || (line.contains("registry") && line.contains('@'))
}

/// Returns a `KEY=VALUE` argument fit for display: the value is hidden if it is a secret, or a section that may contain one.
pub fn shown_setting(setting: &str) -> String {
    match setting.split_once('=') {
        None if may_hold(setting) => HIDDEN.into(),
        None => setting.into(),
        Some((key, value))
            if is_section(key) || may_hold(setting) || value.contains("://") && value.contains('@') =>
        {
            format!("{}={HIDDEN}", if has_userinfo(key) { HIDDEN } else { key })
        }
        Some(_) => setting.into(),
    }
}

/// Returns true if the key is a whole section that may contain secrets.
fn is_section(key: &str) -> bool {
    ["kafka", "kafka.properties"].contains(&key.trim())
}

/// Returns the command line of this process without secrets.
pub fn command_line() -> String {
    shown_arguments(std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()))
}

fn shown_arguments(arguments: impl Iterator<Item = String>) -> String {
    let mut is_setting = false;
    let shown = arguments.map(|argument| {
        let after_set = std::mem::replace(&mut is_setting, argument == "--set");
        match argument.strip_prefix("--set=") {
            Some(setting) => format!("--set={}", shown_setting(setting)),
            None if after_set => shown_setting(&argument),
            None if has_userinfo(&argument) => HIDDEN.into(),
            None => argument,
        }
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All credentials among the properties of librdkafka 2.12, from its `CONFIGURATION.md` and from `_RK_SENSITIVE` in
    /// `rdkafka_conf.c`, which also marks paths, certificates and users: these are not credentials.
    const CREDENTIALS: [&str; 11] = [
        "ssl.key.password",
        "ssl.key.pem",
        "ssl_key",
        "ssl.keystore.password",
        "sasl.password",
        "sasl.oauthbearer.config",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.client.credentials.client.secret",
        "sasl.oauthbearer.assertion.private.key.passphrase",
        "sasl.oauthbearer.assertion.private.key.pem",
        "schema_registry_auth",
    ];

    #[test]
    fn credentials_are_secrets_and_places_are_not() {
        CREDENTIALS.iter().for_each(|name| assert!(is_secret(name), "{name}"));
        for name in [
            "ssl.key.location",
            "ssl.ca.pem",
            "ssl.certificate.pem",
            "sasl.username",
            "sasl.oauthbearer.token.endpoint.url",
            "sasl.oauthbearer.assertion.private.key.file",
            "sasl.oauthbearer.client.credentials.client.id",
            "forget.key_file",
            "events.columns.user_id",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn addresses_with_passwords_are_seen() {
        for with in ["https://u:p@host", "http://u@h:1/x", "a,SASL_SSL://u:p@h:1", "s3://k:s@bucket/p?q#f"] {
            assert!(has_userinfo(with), "{with}");
        }
        for without in ["https://host/a@b", "file:///a@b", "a@b", "http://host?x=a@b", ""] {
            assert!(!has_userinfo(without), "{without}");
        }
    }

    #[test]
    fn arguments_are_shown_without_secrets() {
        let shown = |arguments: &[&str]| shown_arguments(arguments.iter().map(ToString::to_string));
        assert_eq!(shown(&["climber", "daily", "--set", "seed=1"]), "climber daily --set seed=1");
        for setting in [
            "kafka.properties.sasl.password=hunter2",
            "kafka={properties={a=\"hunter2\"}}",
            "kafka.properties={\"sasl.password\"=\"hunter2\"}",
            "kafka.schema_registry=https://me:hunter2@host",
            "root=s3://hunter2:hunter2@b",
            "kafka.schema_registry_auth=hunter2",
            "kafka.properties.sasl.passwrod=hunter2",
            "sasl.password hunter2",
        ] {
            let both = shown(&["p", "--set", setting, &format!("--set={setting}"), "last"]);
            assert!(!both.contains("hunter2") && both.contains(HIDDEN) && both.ends_with("last"), "{both}");
        }
        assert_eq!(shown(&["p", "--out", "https://me:pw@host/x"]), "p --out ***");
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), HIDDEN);
    }
}
