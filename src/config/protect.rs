//! The configuration that `doorward protect URL` writes.

use std::fmt::Write as _;

/// The file's text. It stands in the data folder itself, beside the file `secret`.
#[must_use]
pub fn protect_toml(listen: &str, url: &str, public: &[String]) -> String {
    let text = |value: &str| toml::Value::String(value.to_owned()).to_string();
    let mut file = format!(
        "data_dir = \".\"\n\n\
         [server]\nlisten = [{}]\n\n\
         # Account commands use the socket in this folder; there is no admin port.\n\
         [admin]\nlisten = \"\"\n\n\
         [token]\nsecret_file = \"secret\"\n\n\
         [log]\nformat = \"text\"\n\n\
         [upstream.app]\nurls = [{}]\n\n\
         [[route]]\npath = \"/\"\nupstream = \"app\"\n",
        text(listen),
        text(url)
    );
    for path in public {
        // Writing to a String can't fail.
        let _ = write!(file, "\n[[route]]\npath = {}\naccess = \"public\"\nupstream = \"app\"\n", text(path));
    }
    file
}
