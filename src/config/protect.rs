//! The configuration that `doorward protect URL` writes.

use std::fmt::Write as _;

/// What differs from one to the next.
#[derive(Clone, Copy, Debug)]
pub struct Protection<'a> {
    pub listen: &'a str,
    pub url: &'a str,
    /// Paths that need no login.
    pub public: &'a [String],
    /// `portal.prefix`; empty: none.
    pub prefix: &'a str,
    /// `cookie.name`; `None`: the default.
    pub cookie: Option<&'a str>,
}

/// The file's text. It stands in the data folder itself, beside the file `secret`.
#[must_use]
pub fn protect_toml(wanted: &Protection<'_>) -> String {
    let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
    let mut file = format!(
        "data_dir = \".\"\n\n\
         [server]\nlisten = [{}]\n\n\
         # Account commands use the socket in this folder; there is no admin port.\n\
         [admin]\nlisten = \"\"\n\n\
         [token]\nsecret_file = \"secret\"\n\n",
        text(wanted.listen),
    );
    if let Some(name) = wanted.cookie {
        // Writing to a String can't fail, here and below.
        let _ = write!(
            file,
            "# Browsers keep cookies by host and not by port, so each folder's has a name of its own.\n\
             [cookie]\nname = {}\n\n",
            text(name)
        );
    }
    if !wanted.prefix.is_empty() {
        let _ = write!(
            file,
            "# The application may have a /login of its own.\n[portal]\nprefix = {}\n\n",
            text(wanted.prefix)
        );
    }
    let _ = write!(
        file,
        "[log]\nformat = \"text\"\n\n\
         [upstream.app]\nurls = [{}]\n\n\
         [[route]]\npath = \"/\"\nupstream = \"app\"\n",
        text(wanted.url)
    );
    for path in wanted.public {
        let _ = write!(file, "\n[[route]]\npath = {}\naccess = \"public\"\nupstream = \"app\"\n", text(path));
    }
    file
}
