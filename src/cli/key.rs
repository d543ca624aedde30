//! `doorward key …`.

use serde_json::Value;

use super::arguments::{KeyVerb, Place};
use super::output::Output;
use super::user::{field as of, plain};
use super::{Done, Failure, configuration, operate};
use crate::admin::command::{Command, Outcome};
use crate::admin::socket::{AskError, ask};
use crate::auth::keys;
use crate::clock::Clock;
use crate::config::{Algorithm, Config};

pub(super) fn run(verb: &KeyVerb, place: &Place, output: &mut Output) -> Done {
    let config = configuration::load(place)?;
    operate::here_or_elsewhere(&config)?;
    let clock = Clock::system();
    match verb {
        KeyVerb::Generate { algorithm } => {
            let algorithm = match algorithm.as_deref() {
                None => config.token.algorithm,
                Some(name) => parse(name)?,
            };
            let key = keys::generate(&config.data_dir, algorithm, &clock).map_err(Failure::failed)?;
            output.line(&format!("made the {} key {} in {}", key.algorithm, key.kid, key.origin))?;
            reload(&config, output)
        }
        KeyVerb::List { json } => {
            // A running server knows which of them it has in force.
            let keys = match operate::ask_server(&config.data_dir, &Command::KeyList)? {
                Some(Outcome::Failed { message }) => return Err(Failure::Failed(message)),
                Some(outcome) => Value::Array(operate::rows(outcome)),
                None => {
                    let keys = keys::list(&config.token, &config.data_dir, clock.unix_seconds());
                    serde_json::to_value(keys.map_err(Failure::failed)?).map_err(Failure::failed)?
                }
            };
            if *json {
                return output.json(&keys);
            }
            let fields = ["kid", "algorithm", "role", "origin", "created", "accepted_until"];
            let rows: Vec<Vec<String>> = keys
                .as_array()
                .into_iter()
                .flatten()
                .map(|key: &Value| fields.iter().map(|field| plain(of(key, field))).collect())
                .collect();
            output.table(&["KID", "ALGORITHM", "ROLE", "ORIGIN", "CREATED", "ACCEPTED UNTIL"], &rows)
        }
        KeyVerb::Rotate => {
            let key = keys::rotate(&config.token, &config.data_dir, &clock).map_err(Failure::failed)?;
            output.line(&format!("the {} key {} signs from now on", key.algorithm, key.kid))?;
            reload(&config, output)
        }
    }
}

fn parse(name: &str) -> Result<Algorithm, Failure> {
    match name.to_ascii_lowercase().as_str() {
        "hs256" => Ok(Algorithm::Hs256),
        "eddsa" => Ok(Algorithm::EdDsa),
        "es256" => Ok(Algorithm::Es256),
        _ => Err(Failure::usage(format!("--algorithm {name}: HS256, EdDSA or ES256"))),
    }
}

/// A running server learns of the new key at once.
fn reload(config: &Config, output: &mut Output) -> Done {
    match ask(&config.data_dir, &Command::Reload) {
        Ok(Outcome::Failed { message }) => {
            Err(Failure::failed(format!("the key is made, but the running server did not take it: {message}")))
        }
        Ok(_) => output.line("the running server has taken it"),
        Err(AskError::NobodyThere) => Ok(()),
        Err(error) => {
            Err(Failure::failed(format!("the key is made, but the running server could not be told: {error}")))
        }
    }
}
