//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::admin::command::ImportFormat;

/// A login in front of anything that speaks HTTP.
#[derive(Debug, Parser)]
#[command(name = "doorward", version, max_term_width = 100)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) place: Place,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// Where the configuration is.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct Place {
    /// The configuration file [default: $DOORWARD_CONFIG, ./config.toml, /etc/doorward/config.toml]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "data")]
    pub(super) config: Option<PathBuf>,
    /// A folder that `doorward protect` made, in place of a configuration file
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Put a login in front of URL, with no configuration file
    Protect(Protect),
    /// Try it out: a login in front of a small built-in page that shows what a backend learns of you
    Demo(Demo),
    /// Serve what a configuration file says
    Serve,
    /// Print every problem of a configuration file, and run its policy tests
    CheckConfig,
    /// Ask the running server whether it is ready: exit status 0, or 1 with the reason
    Health(Health),
    /// Tell which route a request takes and what is decided, without sending it
    Explain(Explain),
    /// Accounts
    User {
        #[command(subcommand)]
        verb: UserVerb,
    },
    /// Who is logged in
    Session {
        #[command(subcommand)]
        verb: SessionVerb,
    },
    /// Tokens for scripts, and what a token says
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
    },
    /// Signing keys
    Key {
        #[command(subcommand)]
        verb: KeyVerb,
    },
    /// The whole store: to a file and back
    Store {
        #[command(subcommand)]
        verb: StoreVerb,
    },
    /// Print a completion script for a shell
    Completions { shell: clap_complete::Shell },
    /// Print the manual page (roff), or write one for every command into a folder
    Man {
        /// The folder for all pages
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Protect {
    /// Where the application listens: http://127.0.0.1:9000, localhost:9000, 9000, unix:/run/app.sock
    pub(super) url: String,
    /// Where the login listens: a port (this machine only), or HOST:PORT; :PORT is all of this machine's addresses
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(super) listen: String,
    /// Where the login's own pages stand [default: the root, or /_auth where the application has such pages]
    #[arg(long, value_name = "PATH")]
    pub(super) prefix: Option<String>,
    /// A path that needs no login; may be given several times
    #[arg(long, value_name = "PATH")]
    pub(super) public: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Where the login listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(super) listen: String,
}

#[derive(Debug, Args)]
pub(super) struct Health {
    /// An admin listener to ask, for example http://127.0.0.1:9180, in place of a configuration's server
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "data"])]
    pub(super) url: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Explain {
    /// GET, POST, …
    pub(super) method: String,
    /// For example https://app.example.com/admin
    pub(super) url: String,
    /// The account that sends the request; nobody is logged in without it
    #[arg(long = "as", value_name = "USER")]
    pub(super) as_user: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Where a new password comes from.
#[derive(Debug, Args)]
pub(super) struct NewPassword {
    /// Read the password from standard input
    #[arg(long, conflicts_with = "generate")]
    pub(super) password_stdin: bool,
    /// Make a random password and print it
    #[arg(long)]
    pub(super) generate: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum UserVerb {
    /// Add an account
    Add {
        name: String,
        #[command(flatten)]
        password: NewPassword,
        /// A group; may be given several times
        #[arg(long = "group", value_name = "G")]
        groups: Vec<String>,
        #[arg(long, value_name = "E", default_value = "")]
        email: String,
        #[arg(long, value_name = "D", default_value = "")]
        display_name: String,
    },
    /// List all accounts
    #[command(alias = "ls")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one account
    Show {
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give an account another password; ends its sessions
    #[command(alias = "passwd")]
    SetPassword {
        name: String,
        #[command(flatten)]
        password: NewPassword,
    },
    /// Set the groups of an account; without groups: clear them
    SetGroups { name: String, groups: Vec<String> },
    /// Refuse an account's logins and end its sessions
    Disable { name: String },
    /// Let an account log in again
    Enable { name: String },
    /// Remove an account and end its sessions
    #[command(aliases = ["rm", "delete"])]
    Remove { name: String },
    /// Add the accounts of a file, all or none, with the hashes they have
    Import {
        file: PathBuf,
        #[arg(long)]
        format: ImportFormat,
        /// Also take $apr1$, $1$, $5$, $6$ and {SHA} hashes; each is made anew at the person's next login
        #[arg(long)]
        accept_weak: bool,
    },
    /// Write all accounts with their hashes as JSON, for `import --format json`
    Export,
}

#[derive(Debug, Subcommand)]
pub(super) enum SessionVerb {
    /// List sessions, of all or of one account
    #[command(alias = "ls")]
    List {
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End one session, all of one account, or all
    #[command(group(clap::ArgGroup::new("which").required(true).args(["sid", "user", "all"])))]
    Revoke {
        sid: Option<String>,
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenVerb {
    /// Print a token for a script
    Issue {
        name: String,
        /// For example 90s, 12h, 7d [default: token.lifetime]
        #[arg(long, value_name = "D")]
        lifetime: Option<String>,
    },
    /// Print what a token says, and whether it would be accepted; reads standard input without TOKEN
    Inspect {
        token: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum KeyVerb {
    /// Make a signing key in the data folder
    Generate {
        /// HS256, EdDSA or ES256 [default: token.algorithm]
        #[arg(long, value_name = "A")]
        algorithm: Option<String>,
    },
    /// List the keys in use; never the keys themselves
    #[command(alias = "ls")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Sign with a new key from now on; the old one is still accepted until its last token has expired
    Rotate,
}

#[derive(Debug, Subcommand)]
pub(super) enum StoreVerb {
    /// Write everything to one JSON-lines file, or to standard output
    Dump { file: Option<PathBuf> },
    /// Read a dump into an empty store
    Restore {
        file: PathBuf,
        /// Keep the dump's sessions valid; safe only when nothing was revoked since it was made
        #[arg(long)]
        keep_sessions: bool,
    },
    /// Copy everything from one configuration's store into another's, which must be empty; nobody is logged out
    Copy {
        /// The configuration whose store is read; its server may run
        #[arg(long, value_name = "CONFIG")]
        from: PathBuf,
        /// The configuration whose store is filled; its server must not run
        #[arg(long, value_name = "CONFIG")]
        to: PathBuf,
    },
}
