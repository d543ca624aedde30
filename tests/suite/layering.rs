//! Who may import whom: the table of ARCHITECTURE.md, held against every line of the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};

/// The rooms at the top: they may use everything below them.
const TOP: &[&str] = &["app", "cli", "fuzzing", "lib", "main", "measure"];

/// Each room and the rooms that it may use, beside itself.
type Table = BTreeMap<String, BTreeSet<String>>;

/// Paths below `src`, and the texts.
type Sources = BTreeMap<String, String>;

/// The rows behind `| module | may import |`.
fn table_of(architecture: &str) -> Table {
    let rows = architecture.lines().skip_while(|line| *line != "| module | may import |").skip(2);
    let mut table = Table::new();
    for row in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [rooms, allowed] = cells[..] else { panic!("not two columns: {row}") };
        // The last row names the rooms that may use everything.
        if allowed.starts_with("all of the above") {
            assert!(rooms.split(", ").all(|room| TOP.contains(&room)), "{row}");
            continue;
        }
        let allowed =
            if allowed == "nothing" { BTreeSet::new() } else { allowed.split(", ").map(String::from).collect() };
        assert!(table.insert(rooms.to_owned(), allowed).is_none(), "twice: {row}");
    }
    table
}

fn table() -> Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let table = table_of(&fs::read_to_string(path).unwrap());
    assert!(table.len() > 15, "the table was not found in ARCHITECTURE.md");
    table
}

/// `#[cfg(test)]`, also as one condition of several that must all hold.
fn for_tests_only(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return false };
        let condition = list.tokens.to_string();
        list.path.is_ident("cfg")
            && (condition == "test" || condition.starts_with("all (test") || condition.starts_with("all(test"))
    })
}

/// The module that a file holds: `auth/token.rs` is `auth`, `token`.
fn module_of(path: &str) -> Vec<String> {
    let mut segments: Vec<String> = path.trim_end_matches(".rs").split('/').map(String::from).collect();
    if segments.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        segments.pop();
    }
    segments
}

/// Walks a file and notes the first segment below the crate's root of every path.
struct Imports {
    /// Where the walk is, from the crate's root.
    module: Vec<String>,
    rooms: BTreeSet<String>,
    /// Files that are modules for tests only.
    test_files: BTreeSet<String>,
}

impl Imports {
    fn note(&mut self, segments: &[String]) {
        let mut rest = segments;
        let mut at = match rest.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.module.clone(),
            _ => return,
        };
        while let Some((first, following)) = rest.split_first() {
            match first.as_str() {
                "crate" | "self" => {}
                "super" => drop(at.pop()),
                _ => break,
            }
            rest = following;
        }
        at.extend(rest.iter().cloned());
        self.rooms.extend(at.into_iter().next());
    }

    fn note_use(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.note_use(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.note(&with(&name.ident)),
            syn::UseTree::Rename(rename) => self.note(&with(&rename.ident)),
            syn::UseTree::Glob(_) => self.note(before),
            syn::UseTree::Group(group) => group.items.iter().for_each(|item| self.note_use(before, item)),
        }
    }
}

impl<'ast> Visit<'ast> for Imports {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Mod(module) => &module.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Struct(item) => &item.attrs,
            syn::Item::Enum(item) => &item.attrs,
            syn::Item::Const(item) => &item.attrs,
            syn::Item::Static(item) => &item.attrs,
            syn::Item::Type(item) => &item.attrs,
            syn::Item::Trait(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !for_tests_only(attributes) {
            return visit::visit_item(self, item);
        }
        if let syn::Item::Mod(module) = item
            && module.content.is_none()
        {
            let folder = self.module.join("/");
            let named = module.attrs.iter().find_map(|attribute| match &attribute.meta {
                syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
                    syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
                    _ => None,
                },
                _ => None,
            });
            // `#[path]` counts from the folder of the file, not from that of the module.
            let files = match named {
                Some(file) => vec![
                    format!("{folder}/{file}"),
                    format!("{}/{file}", folder.rsplit_once('/').map_or("", |(above, _)| above)),
                ],
                None => vec![format!("{folder}/{}.rs", module.ident), format!("{folder}/{}/", module.ident)],
            };
            self.test_files.extend(files);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.module.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.note_use(&[], &item.tree);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(in crate::…)` gives, it takes nothing.
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note(&segments);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        // What a macro makes of its tokens is not known here; a path among them is one all the same.
        let tokens = called.tokens.to_string();
        for (at, _) in tokens.match_indices("crate") {
            if tokens[..at].ends_with(|before: char| before.is_alphanumeric() || "_$\"".contains(before)) {
                continue;
            }
            let rest = tokens[at + "crate".len()..].trim_start();
            if let Some(rest) = rest.strip_prefix("::") {
                let name = rest.trim_start().split(|character: char| !character.is_alphanumeric() && character != '_');
                self.rooms.extend(name.take(1).filter(|name| !name.is_empty()).map(String::from));
            }
        }
        visit::visit_macro(self, called);
    }
}

/// What is wrong with a tree of sources: imports that the table does not allow, and permissions that nobody uses.
fn violations(sources: &Sources, table: &Table) -> Vec<String> {
    let mut found = Vec::new();
    let mut by_file = BTreeMap::new();
    let mut test_files = BTreeSet::new();
    for (path, source) in sources {
        let file = syn::parse_file(source).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut imports = Imports { module: module_of(path), rooms: BTreeSet::new(), test_files: BTreeSet::new() };
        imports.visit_file(&file);
        test_files.append(&mut imports.test_files);
        by_file.insert(path, imports.rooms);
    }
    let mut unused = table.clone();
    for (path, rooms) in by_file {
        let room = module_of(path).into_iter().next().unwrap_or_else(|| String::from("lib"));
        let for_tests = test_files.iter().any(|file| path == file || (file.ends_with('/') && path.starts_with(file)));
        if TOP.contains(&room.as_str()) || for_tests {
            continue;
        }
        let Some(allowed) = table.get(&room) else {
            found.push(format!("{path}: the room {room} is not in the table"));
            continue;
        };
        for name in rooms.into_iter().filter(|name| *name != room) {
            if !allowed.contains(&name) {
                found.push(format!("{path}: {room} may not use {name}"));
            }
            unused.get_mut(&room).map(|left| left.remove(&name));
        }
    }
    let used = |room: &String| sources.keys().any(|path| module_of(path).first() == Some(room));
    for (room, left) in unused.iter().filter(|(room, _)| used(room)) {
        found.extend(left.iter().map(|name| format!("{room} may use {name}, and does not: take it out of the table")));
    }
    found
}

fn read_tree(folder: &Path, below: &str, sources: &mut Sources) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{below}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            read_tree(&entry.path(), &format!("{name}/"), sources);
        } else if Path::new(&name).extension().is_some_and(|extension| extension == "rs") {
            sources.insert(name, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

#[test]
fn every_room_imports_only_what_the_table_allows() {
    let mut sources = Sources::new();
    read_tree(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut sources);
    assert!(sources.len() > 30, "the sources were not found: {}", sources.len());
    let found = violations(&sources, &table());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A table in which each room uses all that it may, so that only what is planted is wrong.
fn planted(path: &str, source: &str) -> Vec<String> {
    let table = table_of(
        "| module | may import |\n|---|---|\n| clock | nothing |\n| config | clock |\n| policy | config |\n\
         | auth | policy |\n| app, cli | all of the above |\n",
    );
    let mut sources = Sources::from([
        ("config/mod.rs".to_owned(), String::from("use crate::clock;")),
        ("policy/other.rs".to_owned(), String::from("use crate::config;")),
        ("auth/other.rs".to_owned(), String::from("use crate::policy;")),
    ]);
    sources.insert(path.to_owned(), source.to_owned());
    violations(&sources, &table)
}

#[test]
fn the_check_finds_an_import_upwards_in_every_form() {
    for (path, line) in [
        ("policy/mod.rs", "use crate::auth::Live;"),
        ("policy/mod.rs", "use crate::{config::Access, auth};"),
        ("policy/mod.rs", "fn f() { crate::auth::pages(); }"),
        ("policy/mod.rs", "fn f() { warn!(\"{}\", crate::auth::NAME); }"),
        ("policy/mod.rs", "impl From<crate::auth::A> for B {}"),
        ("policy/rules/deep.rs", "use super::super::super::auth::Verified;"),
        ("policy/rules/deep.rs", "mod inner { use super::super::super::super::auth::Verified; }"),
        ("clock.rs", "use super::config;"),
        ("auth/token.rs", "pub use crate::clock::Clock as A;"),
        ("novelty/mod.rs", "fn f() {}"),
        // Behind a declaration of tests, whose text is in another file.
        ("policy/mod.rs", "#[cfg(test)]\nmod tests;\nuse crate::auth;"),
        ("policy/mod.rs", "#[cfg(test)]\nmod tests { use crate::auth; }\nuse crate::auth;"),
        ("policy/mod.rs", "const A: &str = r#\"\"\"#; use crate::auth;"),
        ("config/mod.rs", "fn unused() {}"),
    ] {
        let found = planted(path, line);
        assert_eq!(found.len(), 1, "{path}: {line}: {found:?}");
    }
    for (path, line) in [
        ("policy/mod.rs", "use crate::{config::{Access, Route}, policy::x};"),
        ("policy/mod.rs", "// use crate::auth::Live;"),
        ("policy/mod.rs", "const TEXT: &str = \"crate::auth\";"),
        ("policy/mod.rs", "fn f() { warn!(\"crate::auth\"); }"),
        ("auth/token.rs", "use super::keys::KeyRing;"),
        ("auth/token.rs", "use self::deep::auth;"),
        ("policy/mod.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use crate::auth; }"),
        ("app/mod.rs", "use crate::auth;"),
    ] {
        assert_eq!(planted(path, line), Vec::<String>::new(), "{path}: {line}");
    }
}

#[test]
fn the_table_has_no_circle() {
    // Every room stands below those that use it: taking out the rooms that need nothing more must empty the table.
    let mut left = table();
    while !left.is_empty() {
        let free: Vec<String> = left
            .iter()
            .filter(|(_, uses)| uses.iter().all(|name| !left.contains_key(name)))
            .map(|(name, _)| name.clone())
            .collect();
        assert!(!free.is_empty(), "a circle among {:?}", left.keys());
        for name in free {
            left.remove(&name);
        }
    }
}
