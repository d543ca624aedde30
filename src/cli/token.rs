//! `doorward token …`.

use serde_json::Value;

use super::arguments::{Place, TokenVerb};
use super::output::{Output, printable, read_standard_input};
use super::user::field;
use super::{Done, Failure, configuration, operate};
use crate::admin::command::Command;
use crate::admin::operations::hidden;
use crate::config::units::Span;

pub(super) fn run(verb: TokenVerb, place: &Place, output: &mut Output) -> Done {
    let config = configuration::load(place)?;
    match verb {
        TokenVerb::Issue { name, lifetime } => {
            let lifetime = lifetime
                .map(|text| text.parse::<Span>().map(|span| span.duration().as_secs()))
                .transpose()
                .map_err(|error| Failure::usage(format!("--lifetime: {error}")))?;
            let command = Command::TokenIssue { username: name, lifetime };
            output.line(&operate::text(operate::operate(config, command)?))
        }
        TokenVerb::Inspect { token, json } => {
            let token = match token {
                Some(token) => token,
                None => read_standard_input()?,
            };
            let command = Command::TokenInspect { token: hidden(token.trim().to_owned()) };
            let rows = operate::rows(operate::operate(config, command)?);
            let Some(found) = rows.into_iter().next() else { return Ok(()) };
            let accepted = *field(&found, "accepted") == Value::Bool(true);
            let reason = field(&found, "reason").as_str().unwrap_or_default().to_owned();
            if json {
                output.json(&found)?;
            } else {
                for part in ["header", "claims"] {
                    let text = serde_json::to_string_pretty(field(&found, part)).map_err(Failure::failed)?;
                    let text: Vec<String> = text.lines().map(printable).collect();
                    output.line(&format!("{part} {}", text.join("\n")))?;
                }
                if accepted {
                    output.line("accepted: yes")?;
                }
            }
            if accepted { Ok(()) } else { Err(Failure::failed(format!("the token would be refused: {reason}"))) }
        }
    }
}
