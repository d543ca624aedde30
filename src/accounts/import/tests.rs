//! Tests of reading and writing user files.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

/// As `htpasswd -nbB kim …` prints it.
const BCRYPT: &str = "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
/// As Authelia's documentation shows it.
const ARGON2ID: &str = "$argon2id$v=19$m=65536,t=3,p=4$BpLnfgDsc2WD8F2q$o/vzA4myCqZZ36bUGsDY//8mKUYNZZaR0t4MFFSs+iM";

fn names(imported: &[Imported]) -> Vec<&str> {
    imported.iter().map(|account| account.username.as_str()).collect()
}

fn problems(read: Result<Vec<Imported>, Vec<String>>) -> String {
    read.unwrap_err().join("\n")
}

#[test]
fn htpasswd_lines_are_read() {
    let text = format!("\u{feff}# staff\r\nKim:{BCRYPT}\r\n\r\n  # indented\nlee:{BCRYPT}:the new one\nmax:{ARGON2ID}");
    let imported = htpasswd(&text).unwrap();
    assert_eq!(names(&imported), ["kim", "lee", "max"]);
    assert!(imported[1].password_hash.matches(BCRYPT.as_bytes()));
    assert!(imported.iter().all(|account| account.id.is_none() && !account.disabled && account.version == 0));
    assert!(htpasswd("").unwrap().is_empty());
}

#[test]
fn every_problem_of_an_htpasswd_file_is_told() {
    let cut = BCRYPT.get(..40).unwrap();
    let text = format!(
        "kim:{BCRYPT}\nnocolon\n:{BCRYPT}\nK IM:{BCRYPT}\nKIM:{BCRYPT}\na:\nb:$apr1$salt$0123456789012345678901\n\
         c:{{SHA}}fEqNCco3Yq9h5ZUglD3CZJT4lBs=\nd:rqXexS6ZhobKA\ne:$5$salt$hash\nf:$6$salt$hash\ng:hunter2hunter2\n\
         h:{cut}\ni:{}\nj:$argon2i$v=19$m=64,t=2,p=1$c2FsdHNhbHQ$aGFzaA\nk:$unheard$of\n",
        BCRYPT.replace("$05$", "$31$"),
    );
    insta::assert_snapshot!(problems(htpasswd(&text)), @r#"
    line 2: has no colon; a line must read name:hash
    line 3: the user name is empty
    line 4: the user name has a control character, white space or an invisible character in it
    line 5: ("kim") the user name is already taken by line 1; capital letters make no difference
    line 6: ("a") there is no password hash
    line 7: ("b") the password is kept as Apache's MD5 ($apr1$), which is quick to guess; `--accept-weak` takes it until the person's next login, which makes it anew, or make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 8: ("c") the password is kept as unsalted SHA-1 ({SHA}), which is quick to guess; `--accept-weak` takes it until the person's next login, which makes it anew, or make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 9: ("d") the password is kept as crypt(3) or plain text, which is not accepted; make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 10: ("e") the password is kept as SHA-256 crypt ($5$), which is quick to guess; `--accept-weak` takes it until the person's next login, which makes it anew, or make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 11: ("f") the password is kept as SHA-512 crypt ($6$), which is quick to guess; `--accept-weak` takes it until the person's next login, which makes it anew, or make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 12: ("g") the password is kept as plain text or in a scheme unknown here, which is not accepted; make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 13: ("h") the password hash is damaged or cut; make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 14: ("i") the password hash has a cost outside what is allowed (bcrypt 4 to 16; argon2id up to 256 MiB, t 16, p 16; SHA crypt up to 1,000,000 rounds); make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 15: ("j") the password is kept as Argon2i ($argon2i$; only Argon2id is), which is not accepted; make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 16: ("k") the password is neither a bcrypt nor an Argon2id hash; make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    "#);
}

#[test]
fn problems_are_counted_after_the_first_thousand() {
    let problems = htpasswd(&"x\n".repeat(5_000)).unwrap_err();
    assert_eq!(problems.len(), 1_001);
    assert_eq!(problems.last().unwrap(), "and 4000 more problems");
}

#[test]
fn a_file_that_is_too_long_is_refused_before_it_is_read() {
    let text = " ".repeat(MAX_TEXT_BYTES + 1);
    for read in [htpasswd, json, authelia] {
        assert_eq!(problems(read(&text)), "the file is longer than 64 MiB");
    }
}

fn account(id: &str, name: &str) -> Account {
    Account {
        id: AccountId::try_from(id.to_owned()).unwrap(),
        username: Username::canonical(name).unwrap(),
        password_hash: Secret::new(BCRYPT.to_owned()),
        groups: vec![String::from("staff"), String::from("night \"shift\"")],
        email: format!("{name}@example.com"),
        display_name: String::from("Kim Lée"),
        disabled: true,
        version: 3,
        created: 0,
        changed: 1_795_512_600,
        revision: 9,
    }
}

#[test]
fn an_export_has_this_form() {
    insta::assert_snapshot!(to_json(&[account("id-1", "kim")], true), @r#"
    [
      {
        "_id": "id-1",
        "username": "kim",
        "groups": [
          "staff",
          "night \"shift\""
        ],
        "email": "kim@example.com",
        "display_name": "Kim Lée",
        "disabled": true,
        "__v": 3,
        "created": "1970-01-01T00:00:00Z",
        "changed": "2026-11-24T09:30:00Z",
        "password_hash": "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
      }
    ]
    "#);
    let without = to_json(&[account("id-1", "kim")], false);
    assert!(!without.contains("password_hash") && !without.contains(BCRYPT));
    assert_eq!(to_json(&[], true), "[]");
}

#[test]
fn what_is_exported_can_be_imported() {
    let accounts = [account("id-1", "kim"), account("id-2", "lee")];
    let imported = json(&to_json(&accounts, true)).unwrap();
    assert_eq!(imported.len(), 2);
    for (before, after) in accounts.iter().zip(&imported) {
        assert_eq!(after.id.as_ref(), Some(&before.id));
        assert_eq!(after.username, before.username);
        assert!(after.password_hash.matches(BCRYPT.as_bytes()));
        assert_eq!(after.groups, before.groups);
        assert_eq!((&after.email, &after.display_name), (&before.email, &before.display_name));
        assert_eq!((after.disabled, after.version), (true, 3));
    }
}

#[test]
fn json_needs_only_a_name_and_a_hash() {
    let text = format!(
        r#" [{{"username": "Kim", "password_hash": "{BCRYPT}"}},
             {{"username": "lee", "password_hash": "{BCRYPT}", "_id": null, "groups": null, "created": 7}}] "#
    );
    let imported = json(&text).unwrap();
    assert_eq!(names(&imported), ["kim", "lee"]);
    assert!(imported.iter().all(|account| account.id.is_none() && account.version == 0));
    assert!(json("[]").unwrap().is_empty());
}

#[test]
fn every_problem_of_a_json_file_is_told() {
    let good = |name: &str, more: &str| format!(r#"{{"username":"{name}","password_hash":"{BCRYPT}"{more}}}"#);
    let long_group = "g".repeat(65);
    let entries = [
        good("a", r#","_id":"1""#),
        String::from(r#""hunter2""#),
        String::from("{}"),
        good("b", r#","admin":true,"_id":1,"groups":"staff","email":[],"disabled":"no","__v":-1,"__v":2"#),
        good("A", r#","_id":"1""#),
        good(
            "c",
            r#","_id":"with space","groups":["a,b"],"email":"a\u0000","display_name":"\n","__v":9007199254740992"#,
        ),
        good("d", &format!(r#","groups":["{long_group}"]"#)),
        good("e", r#","groups":["staff",7]"#),
        String::from(r#"{"username":"f","password_hash":"$6$salt$hash"}"#),
        String::from(r#"{"username":"","password_hash":""}"#),
        good("g", r#","groups":[]"#),
    ];
    insta::assert_snapshot!(problems(json(&format!("[{}]", entries.join(",")))), @r#"
    entry 2: is no object
    entry 3: `username` is missing
    entry 3: `password_hash` is missing
    entry 4: there is no field "admin"
    entry 4: `_id` must be a text
    entry 4: `groups` must be an array of texts
    entry 4: `email` must be a text
    entry 4: `disabled` must be true or false
    entry 4: `__v` must be a whole number from 0
    entry 4: `__v` is given twice
    entry 5: ("a") the user name is already taken by entry 1; capital letters make no difference
    entry 5: ("a") the `_id` is already taken by entry 1
    entry 6: ("c") the `_id` may hold visible ASCII characters only
    entry 6: ("c") the e-mail address "a\0" has a control character or white space in it
    entry 6: ("c") the display name "\n" has a control character in it
    entry 6: ("c") the group "a,b" has a control character or a comma in it
    entry 6: ("c") `__v` is larger than 9007199254740991
    entry 7: ("d") the group "gggggggggggggggggggggggggggggggggggggggggggggggggggggggggggggggg"… is longer than 64 characters
    entry 8: `groups` must be an array of texts
    entry 9: ("f") the password is kept as SHA-512 crypt ($6$), which is quick to guess; `--accept-weak` takes it until the person's next login, which makes it anew, or make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    entry 10: the user name is empty
    "#);
}

#[test]
fn what_is_no_json_array_is_told_without_a_value() {
    let texts = [
        "",
        r#""hunter2""#,
        r#"{"username": "kim"}"#,
        "[\n  {,}]",
        "[] []",
        &"[".repeat(200_000),
        &r#"[{"groups":"#.repeat(100_000),
    ];
    let told: Vec<_> = texts.iter().map(|text| problems(json(text))).collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    the file is no JSON: EOF while parsing a value at line 1 column 0
    the file must hold an array of accounts: [{"username": …, "password_hash": …}, …]
    line 1: `password_hash` is missing
    the file is no JSON: key must be a string at line 2 column 4
    the file is no JSON: trailing characters at line 1 column 4
    the file is no JSON: recursion limit exceeded at line 1 column 128
    the file is no JSON: recursion limit exceeded at line 1 column 695
    "#);
}

const AUTHELIA: &str = r#"%YAML 1.2
---
###############################################################
#                         Users Database                      #
###############################################################

# List of users
users:
  john:
    disabled: false
    displayname: 'John Wick'
    password: '$argon2id$v=19$m=65536,t=3,p=4$BpLnfgDsc2WD8F2q$o/vzA4myCqZZ36bUGsDY//8mKUYNZZaR0t4MFFSs+iM'
    email: 'john.wick@example.com'
    groups:
      - 'admins'
      - 'dev'
    given_name: 'John'
    address:
      street_address: '1 High Street'
      locality: 'Fitzroy'
    extra:
      deep: [1, {a: b}, *anything]
  Harry:
    disabled: yes
    displayname: Harry Potter
    password: "{CRYPT}$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
    email: ~
    groups: []
  123: {password: $2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW, groups: }
...
"#;

#[test]
fn authelias_users_are_read() {
    let imported = authelia(AUTHELIA).unwrap();
    assert_eq!(names(&imported), ["john", "harry", "123"]);
    let [john, harry, number] = &*imported else { unreachable!() };
    assert!(john.password_hash.matches(ARGON2ID.as_bytes()));
    assert_eq!(john.groups, ["admins", "dev"]);
    assert_eq!((&*john.display_name, &*john.email, john.disabled), ("John Wick", "john.wick@example.com", false));
    assert!(harry.password_hash.matches(BCRYPT.as_bytes()));
    assert_eq!((&*harry.email, harry.disabled), ("", true));
    assert!(harry.groups.is_empty() && number.groups.is_empty());
    assert_eq!(names(&authelia(&AUTHELIA.replace('\n', "\r\n")).unwrap()), ["john", "harry", "123"]);
}

#[test]
fn every_problem_of_an_authelia_file_is_told() {
    let text = format!(
        "theme: dark
users:
  a:
    password: '$6$rounds=50000$salt$hash'
  b:
    password: '$pbkdf2-sha512$310000$c2FsdA$aGFzaA'
  c:
    password: '$scrypt$ln=16,r=8,p=1$c2FsdA$aGFzaA'
  d:
    password: '$plaintext$hunter2'
  e:
    displayname: E
  f: hunter2
  g:
    password: &p '{BCRYPT}'
    group: staff
    groups: staff
    disabled: maybe
    email: [a, b]
    email: twice
  h:
    password: *p
  i:
    password: *hunter2
  j:
    <<: *p
    groups: [a, [b], {{c: d}}, e]
    password: '{BCRYPT}'
  A:
    password: '{BCRYPT}'
  ? [k, l]
  : {{password: hunter2}}
  m:
    password: '{BCRYPT}'
    disabled: 'true'
    display_name: M
users: {{}}
"
    );
    insta::assert_snapshot!(problems(authelia(&text)), @r#"
    line 1: there is no key "theme" beside `users`
    line 3: ("a") the password is kept as SHA-512 crypt ($6$), which is quick to guess; `--accept-weak` takes it until the person's next login, which makes it anew, or make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 5: ("b") the password is kept as PBKDF2 ($pbkdf2…), which is not accepted; make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 7: ("c") the password is kept as scrypt ($scrypt$), which is not accepted; make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 9: ("d") the password is kept as plain text ($plaintext$), which is not accepted; make a new hash with `htpasswd -B`, or leave the account out and add it with `doorward user add`
    line 11: ("e") there is no password hash
    line 13: the user "f" must be a map
    line 16: there is no attribute "group" of a user
    line 17: `groups` must be a list of texts
    line 18: `disabled` must be true or false
    line 19: `email` must be a text
    line 20: `email` is given twice
    line 22: an alias (*name) is not read here; write out what it stands for
    line 21: ("h") there is no password hash
    line 24: an alias (*name) is not read here; write out what it stands for
    line 23: ("i") there is no password hash
    line 26: there is no attribute "<<" of a user
    line 27: `groups` must be a list of texts
    line 27: `groups` must be a list of texts
    line 29: ("a") the user name is already taken by line 3; capital letters make no difference
    line 31: a key must be a text
    line 35: `disabled` must be true or false
    line 36: there is no attribute "display_name" of a user
    line 37: `users` is given twice
    "#);
}

#[test]
fn a_message_shows_little_of_a_key_that_is_no_word() {
    for (key, expected) in [
        ("display_name", "\"display_name\""),
        ("bpTSBP$2b$10$x", "\"bpTSBP\"…"),
        ("l*BYRTVy8RXtb5KiWuausers", "\"l*BYRTVy8RXt\"…"),
        ("\u{1b}[2J", "\"\\u{1b}[2J\""),
    ] {
        assert_eq!(shown(key), expected);
    }
}

#[test]
fn what_is_no_users_file_is_told() {
    let texts = [
        "",
        "- hunter2",
        "{}",
        "users:",
        "users: {a: [}",
        "users:\n  a:\n   b: \"hunter2\n",
        "users: {}\n---\nusers: {}\n",
    ];
    let told: Vec<_> = texts.iter().map(|text| problems(authelia(text))).collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    line 1: the file must begin with `users:`
    line 1: the file must begin with `users:`
    line 1: the file has no `users`
    line 1: `users` must be a map of names
    line 1: the user "a" must be a map
    line 1: is no YAML at column 12: mismatched bracket '[' closed by '}'
    line 3: there is no attribute "b" of a user
    line 3: is no YAML at column 7: unclosed quote
    line 2: begins a second document; only one is read
    "#);
}

#[test]
fn a_hash_in_the_place_of_a_key_is_not_shown() {
    // As where an htpasswd file is taken for another one.
    for text in [format!("kim:{BCRYPT}: x\nusers: {{}}\n"), format!("users:\n  kim:\n    {BCRYPT}: x\n")] {
        let told = problems(authelia(&text));
        assert!(told.contains("there is no") && !told.contains("$2y"), "{told}");
    }
    let told = problems(json(&format!(r#"[{{"username":"kim","{BCRYPT}":1}}]"#)));
    assert!(told.contains("there is no field") && !told.contains("$2y"), "{told}");
}

#[test]
fn a_hash_in_the_place_of_a_name_is_not_shown() {
    let told = problems(htpasswd(&format!("{BCRYPT}:kim\nkim {BCRYPT}:x\n")));
    assert!(told.contains("line 1: ") && told.contains("line 2: ") && !told.contains("$2y"), "{told}");
    let told = problems(json(&format!(r#"[{{"username":"{BCRYPT}","password_hash":"x"}}]"#)));
    assert!(told.contains("hash") && !told.contains("$2y"), "{told}");
    // Behind something that belongs there, and then refused for another reason.
    let long = format!("staff {BCRYPT} {}", "x".repeat(99));
    let fields = format!(r#""groups":["{long}"],"email":"{long}","display_name":"{long}""#);
    let told = problems(json(&format!(r#"[{{"username":"kim","password_hash":"{BCRYPT}",{fields}}}]"#)));
    assert!(told.matches("\"staff \"…").count() == 3 && !told.contains("$2y"), "{told}");
}

#[test]
fn nothing_in_an_authelia_file_is_expanded_or_nested_without_end() {
    let mut bomb = String::from("a0: &a0 [x, x]\n");
    for level in 1..60 {
        writeln!(bomb, "a{level}: &a{level} [*a{0}, *a{0}]", level - 1).unwrap();
    }
    assert!(problems(authelia(&bomb)).contains("the file has no `users`"));
    for open in ["[", "{a: ", "- ", "? ", "users: {a: {extra: ["] {
        assert!(authelia(&open.repeat(50_000)).is_err(), "{open}");
    }
    let many = format!("users: {{a: {{password: '{BCRYPT}', groups: [{}]}}}}", "g,".repeat(50_000));
    assert!(authelia(&many).is_ok(), "the same group again is no other group");
}

#[test]
fn a_hundred_thousand_accounts_are_read() {
    const COUNT: usize = 100_000;
    let (mut lines, mut objects, mut yaml) = (String::new(), String::from("["), String::from("users:\n"));
    for number in 0..COUNT {
        writeln!(lines, "user{number}:{BCRYPT}").unwrap();
        let comma = if number == 0 { "" } else { "," };
        write!(objects, r#"{comma}{{"_id":"{number}","username":"user{number}","password_hash":"{BCRYPT}"}}"#).unwrap();
        write!(yaml, "  user{number}:\n    password: '{BCRYPT}'\n    groups: [staff]\n").unwrap();
    }
    objects.push(']');
    assert_eq!(htpasswd(&lines).unwrap().len(), COUNT);
    assert_eq!(json(&objects).unwrap().len(), COUNT);
    let users = authelia(&yaml).unwrap();
    assert_eq!(users.len(), COUNT);
    assert_eq!(users.last().unwrap().username.as_str(), "user99999");
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\PC|\n|\t|\0){0,200}") {
        for read in [htpasswd, json, authelia] {
            let _ = read(&text);
        }
    }

    #[test]
    fn no_yaml_like_text_panics(parts in prop::collection::vec(prop_oneof![
        Just("users:"), Just("\n"), Just("  "), Just("kim:"), Just("password: x"), Just("- "), Just("{"), Just("}"),
        Just("["), Just("]"), Just(","), Just("&a "), Just("*a "), Just("? "), Just(": "), Just("groups:"), Just("|\n"),
        Just("disabled: "), Just("!!str "), Just("---\n"), Just("...\n"), Just("'"), Just("\""), Just("# "), Just("<<: "),
    ], 0..40)) {
        let _ = authelia(&format!("users:\n  a:\n    {}", parts.concat()));
        let _ = authelia(&parts.concat());
    }

    #[test]
    fn no_json_like_text_panics(parts in prop::collection::vec(prop_oneof![
        Just("{"), Just("}"), Just("["), Just("]"), Just(","), Just(":"), Just("\"username\""), Just("\"groups\""),
        Just("\"__v\""), Just("1e400"), Just("-1"), Just("null"), Just("true"), Just("\"kim\""),
    ], 0..40)) {
        let _ = json(&parts.concat());
    }

    #[test]
    fn any_account_comes_back(
        names in prop::collection::hash_set("[a-z0-9é._-]{1,20}", 0..6),
        display_name in "[ -~é]{0,40}",
        groups in prop::collection::vec("[a-z\"\\\\é]{1,10}", 0..4),
        version in 0..=MAX_VERSION,
    ) {
        let names: std::collections::BTreeSet<_> = names.iter().map(|name| Username::canonical(name).unwrap()).collect();
        let accounts: Vec<_> = names.iter().enumerate().map(|(index, name)| Account {
            groups: groups.clone(),
            display_name: display_name.clone(),
            version,
            email: String::new(),
            ..account(&index.to_string(), name.as_str())
        }).collect();
        let imported = json(&to_json(&accounts, true)).unwrap();
        prop_assert_eq!(imported.len(), accounts.len());
        for (before, after) in accounts.iter().zip(&imported) {
            prop_assert_eq!(&after.username, &before.username);
            prop_assert_eq!(&after.display_name, &before.display_name);
            prop_assert_eq!(after.groups.iter().collect::<std::collections::HashSet<_>>(), before.groups.iter().collect());
            prop_assert_eq!(after.version, version);
        }
    }
}

#[test]
fn what_old_systems_kept_is_taken_where_it_is_asked_for() {
    let hashes = [
        "$apr1$abcdefgh$rRdIxwY5XRHT4TMtBPZn.0",
        "$1$12345678$Wp8.nKZ8GFpaXWyEsuEYh0",
        "{SHA}I7dElEdfX4dJgLdnbVEeI9iG2mQ=",
        "$5$saltstring$cRBhKSfYzTy7ht1J5qVPFV0KZImJ0U5L5Ezw0UdIOW4",
        "{CRYPT}$5$saltstring$cRBhKSfYzTy7ht1J5qVPFV0KZImJ0U5L5Ezw0UdIOW4",
        "$$1$$12345678$$Wp8.nKZ8GFpaXWyEsuEYh0",
    ];
    for hash in hashes {
        let line = format!("kim:{hash}\r\n");
        let told = problems(htpasswd(&line));
        assert!(told.starts_with("line 1: ") && told.contains("--accept-weak"), "{told}");
        assert_eq!(names(&htpasswd_accepting(&line, Accept::Weak).unwrap()), ["kim"], "{hash}");
        let cut = problems(htpasswd_accepting(&format!("kim:{}", &hash[..hash.len() - 1]), Accept::Weak));
        assert!(cut.contains("damaged or cut"), "{cut}");
    }
    // What is not even weak is not taken, and its way out is named.
    let told = problems(htpasswd_accepting("kim:{SSHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g0\nlee:hunter2", Accept::Weak));
    assert_eq!(told.lines().filter(|line| line.contains("doorward user add")).count(), 2, "{told}");
}

#[test]
fn hashes_are_taken_out_of_what_is_around_them() {
    let escaped = BCRYPT.replace('$', "$$");
    for hash in [format!("{{bcrypt}}{BCRYPT}"), format!("{{CRYPT}}{BCRYPT}"), escaped] {
        let imported = htpasswd(&format!("kim:{hash}")).unwrap();
        assert_eq!(imported[0].password_hash.expose(), BCRYPT, "{hash}");
    }
}

#[test]
fn what_mongoexport_writes_is_read() {
    let line = |name: &str| {
        format!(
            r#"{{"_id":{{"$oid":"65f1c0ffee65f1c0ffee0001"}},"username":"{name}","hashedPassword":"{BCRYPT}","__v":{{"$numberInt":"3"}},"createdAt":{{"$date":"2026-01-01T00:00:00Z"}}}}"#
        )
    };
    let imported = json(&format!("{}\r\n\r\n", line("kim"))).unwrap();
    assert_eq!(imported[0].id.as_ref().unwrap().as_str(), "65f1c0ffee65f1c0ffee0001");
    assert_eq!((imported[0].version, imported[0].password_hash.expose().as_str()), (3, BCRYPT));
    assert_eq!(names(&json(&format!("[{}]", line("lee"))).unwrap()), ["lee"]);
    let told = problems(json(&format!("{}\n{{\n[]\n", line("kim"))));
    assert_eq!(told.lines().map(|line| &line[..7]).collect::<Vec<_>>(), ["line 2:", "line 3:"], "{told}");
}

#[test]
fn files_of_windows_are_decoded() {
    let text = "kim:x\r\nlee:사람\r\n";
    let wide = |unit: fn(u16) -> [u8; 2], mark: [u8; 2]| {
        mark.into_iter().chain(text.encode_utf16().flat_map(unit)).collect::<Vec<u8>>()
    };
    for bytes in [wide(u16::to_le_bytes, [0xff, 0xfe]), wide(u16::to_be_bytes, [0xfe, 0xff]), text.as_bytes().to_vec()]
    {
        assert_eq!(decode(&bytes).unwrap(), text);
    }
    assert!(decode(b"\xff\xfea").unwrap_err().contains("UTF-16"));
    assert_eq!(decode(b"a\nb\xe9\n").unwrap_err(), "line 2: is not UTF-8; save the file as UTF-8");
}
