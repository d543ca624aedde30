//! Every sentence that a page says, in both languages.

use http::StatusCode;

use super::language::Language;

/// The fixed words of the pages, by the names that the templates use.
#[derive(Debug, serde::Serialize)]
pub(super) struct Words {
    pub(super) sign_in: &'static str,
    pub(super) sign_out: &'static str,
    pub(super) sign_out_question: &'static str,
    pub(super) sign_out_everywhere: &'static str,
    pub(super) username: &'static str,
    pub(super) password: &'static str,
    pub(super) signed_in: &'static str,
    pub(super) signed_in_as: &'static str,
    pub(super) not_signed_in: &'static str,
    pub(super) go_on: &'static str,
    pub(super) your_account: &'static str,
    pub(super) groups: &'static str,
    pub(super) change_password: &'static str,
    pub(super) current_password: &'static str,
    pub(super) new_password: &'static str,
    pub(super) repeat_password: &'static str,
    pub(super) where_signed_in: &'static str,
    pub(super) this_browser: &'static str,
    pub(super) since: &'static str,
    pub(super) last_seen: &'static str,
    pub(super) end_this_one: &'static str,
    pub(super) no_sessions: &'static str,
    pub(super) unknown_program: &'static str,
    pub(super) other_login: &'static str,
    pub(super) request: &'static str,
    pub(super) try_again: &'static str,
    pub(super) sign_in_elsewhere: &'static str,
    pub(super) sign_in_in_new_tab: &'static str,
    pub(super) reload_here: &'static str,
    pub(super) reload_to_send: &'static str,
    pub(super) signed_out: &'static str,
    pub(super) sign_in_again: &'static str,
    pub(super) back_to_application: &'static str,
}

static ENGLISH: Words = Words {
    sign_in: "Sign in",
    sign_out: "Sign out",
    sign_out_question: "Do you want to sign out of this browser?",
    sign_out_everywhere: "Sign out everywhere",
    username: "User name",
    password: "Password",
    signed_in: "You are signed in",
    signed_in_as: "Signed in as",
    not_signed_in: "You are not signed in",
    go_on: "Continue",
    your_account: "Your account",
    groups: "Groups",
    change_password: "Change password",
    current_password: "Current password",
    new_password: "New password",
    repeat_password: "New password again",
    where_signed_in: "Where you are signed in",
    this_browser: "this browser",
    since: "since",
    last_seen: "last seen",
    end_this_one: "End this one",
    no_sessions: "No other session is known.",
    unknown_program: "Unknown program",
    other_login: "Sign in as somebody else",
    request: "Request",
    try_again: "Try again",
    sign_in_elsewhere: "Sign in in another tab, and leave this one open.",
    sign_in_in_new_tab: "Sign in (new tab)",
    reload_here: "Come back and reload this page. If your browser asks, let it send the form again: it sends what you typed.",
    reload_to_send: "To try again, reload this page: your browser then sends what you typed once more.",
    signed_out: "You are signed out",
    sign_in_again: "Sign in again",
    back_to_application: "Back to the application",
};

static KOREAN: Words = Words {
    sign_in: "로그인",
    sign_out: "로그아웃",
    sign_out_question: "이 브라우저에서 로그아웃할까요?",
    sign_out_everywhere: "모든 기기에서 로그아웃",
    username: "사용자 이름",
    password: "비밀번호",
    signed_in: "로그인되어 있습니다",
    signed_in_as: "로그인한 사용자:",
    not_signed_in: "로그인되어 있지 않습니다",
    go_on: "계속하기",
    your_account: "내 계정",
    groups: "그룹",
    change_password: "비밀번호 변경",
    current_password: "현재 비밀번호",
    new_password: "새 비밀번호",
    repeat_password: "새 비밀번호 확인",
    where_signed_in: "로그인된 곳",
    this_browser: "이 브라우저",
    since: "로그인:",
    last_seen: "마지막 사용:",
    end_this_one: "이 세션 끝내기",
    no_sessions: "알려진 다른 세션이 없습니다.",
    unknown_program: "알 수 없는 프로그램",
    other_login: "다른 사용자로 로그인",
    request: "요청 번호",
    try_again: "다시 시도",
    sign_in_elsewhere: "이 탭은 열어 둔 채 다른 탭에서 로그인하세요.",
    sign_in_in_new_tab: "로그인 (새 탭)",
    reload_here: "이 탭으로 돌아와 페이지를 새로 고치세요. 양식을 다시 보낼지 브라우저가 물으면 보내기를 선택하세요. 입력한 내용이 그대로 전송됩니다.",
    reload_to_send: "다시 시도하려면 이 페이지를 새로 고치세요. 입력한 내용을 브라우저가 다시 보냅니다.",
    signed_out: "로그아웃되었습니다",
    sign_in_again: "다시 로그인",
    back_to_application: "애플리케이션으로 돌아가기",
};

/// What went wrong with something that a person sent, or what went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    WrongLogin,
    /// Seconds.
    TooManyTries(u64),
    Busy,
    Unavailable,
    FillIn,
    CookieTooLarge,
    CookieCannotWork,
    WrongCurrentPassword,
    RepeatDiffers,
    NewPasswordRefused,
    NoStoredAccount,
    PasswordChanged,
    SessionEnded,
    NoSuchSession,
}

impl Message {
    pub(super) fn text(self, language: Language) -> String {
        let (english, korean) = match self {
            Self::TooManyTries(seconds) => return too_many_tries(language, seconds),
            Self::WrongLogin => {
                ("The user name or the password is wrong.", "사용자 이름 또는 비밀번호가 올바르지 않습니다.")
            }
            Self::Busy => (
                "Too many people are signing in right now. Please try again in a moment.",
                "지금 로그인하는 사람이 너무 많습니다. 잠시 후 다시 시도해 주세요.",
            ),
            Self::Unavailable => (
                "This can't be done right now. Please try again in a moment.",
                "지금은 처리할 수 없습니다. 잠시 후 다시 시도해 주세요.",
            ),
            Self::FillIn => ("Please fill in every field.", "모든 항목을 입력해 주세요."),
            Self::CookieTooLarge => (
                "This account has too many groups for a browser to stay signed in. Please tell the administrator.",
                "이 계정은 그룹이 너무 많아 로그인을 유지할 수 없습니다. 관리자에게 알려 주세요.",
            ),
            Self::CookieCannotWork => (
                "You can't sign in at this address: this site is set up for another one. Please tell the administrator.",
                "이 주소에서는 로그인할 수 없습니다. 이 사이트는 다른 주소로 설정되어 있습니다. 관리자에게 알려 주세요.",
            ),
            Self::WrongCurrentPassword => ("The current password is wrong.", "현재 비밀번호가 올바르지 않습니다."),
            Self::RepeatDiffers => ("The two new passwords are not the same.", "새 비밀번호가 서로 다릅니다."),
            Self::NewPasswordRefused => ("The new password can't be used.", "새 비밀번호를 사용할 수 없습니다."),
            Self::NoStoredAccount => (
                "The password of this account can't be changed here.",
                "이 계정의 비밀번호는 여기에서 변경할 수 없습니다.",
            ),
            Self::PasswordChanged => (
                "The password was changed. Every other browser has been signed out.",
                "비밀번호를 변경했습니다. 다른 브라우저에서는 모두 로그아웃되었습니다.",
            ),
            Self::SessionEnded => ("That session is over.", "세션을 끝냈습니다."),
            Self::NoSuchSession => ("That session was over already.", "이미 끝난 세션입니다."),
        };
        choose(language, english, korean).to_owned()
    }
}

/// What is wrong with a new password, as the rules for passwords say it, in the reader's language. Korean: empty where
/// there is no sentence for it, for a page never mixes the two.
pub(super) fn password_detail(language: Language, detail: &str) -> &str {
    const KOREAN: [(&str, &str); 5] = [
        ("is shorter than", "비밀번호가 너무 짧습니다."),
        ("is longer than", "비밀번호가 너무 깁니다."),
        ("NUL character", "비밀번호에 사용할 수 없는 문자가 있습니다."),
        ("is the user name", "비밀번호가 사용자 이름과 같습니다."),
        ("most common", "너무 흔한 비밀번호입니다. 다른 비밀번호를 선택해 주세요."),
    ];
    match language {
        Language::English => detail,
        Language::Korean => KOREAN.iter().find(|(sign, _)| detail.contains(sign)).map_or("", |(_, sentence)| *sentence),
    }
}

fn too_many_tries(language: Language, seconds: u64) -> String {
    let minutes = seconds.div_ceil(60).max(1);
    match (language, minutes) {
        (Language::English, 1) => String::from("Too many wrong tries. Please try again in a minute."),
        (Language::English, _) => format!("Too many wrong tries. Please try again in {minutes} minutes."),
        (Language::Korean, _) => format!("잘못된 시도가 너무 많습니다. {minutes}분 후에 다시 시도해 주세요."),
    }
}

/// The rule for new passwords, as far as it can be said in one line.
pub(super) fn password_rule(language: Language, characters: usize) -> String {
    match language {
        Language::English => format!("At least {characters} characters, and not a common password."),
        Language::Korean => format!("{characters}자 이상, 흔한 비밀번호는 사용할 수 없습니다."),
    }
}

/// The heading and the explanation of an error page.
pub(super) fn fault(language: Language, status: StatusCode) -> (&'static str, &'static str) {
    let (english, korean) = match status.as_u16() {
        403 => (
            ("No access", "You are not allowed to open this page. If you think you should be, ask the administrator."),
            ("접근 권한이 없습니다", "이 페이지를 열 수 없습니다. 권한이 필요하면 관리자에게 문의해 주세요."),
        ),
        404 => (
            ("Page not found", "There is nothing at this address. Please check that it is spelled correctly."),
            ("페이지를 찾을 수 없습니다", "이 주소에는 아무것도 없습니다. 주소를 다시 확인해 주세요."),
        ),
        401 => (
            ("Please sign in", "You have to sign in to open this page."),
            ("로그인이 필요합니다", "이 페이지를 열려면 로그인해 주세요."),
        ),
        405 => (
            ("Not possible here", "This address can't be used in this way. Please go back and try again."),
            ("사용할 수 없는 방식입니다", "이 주소는 이런 방식으로 사용할 수 없습니다. 뒤로 가서 다시 시도해 주세요."),
        ),
        408 => (
            ("That took too long", "The request did not arrive in time. Please try again."),
            ("시간이 초과되었습니다", "요청이 제때 도착하지 않았습니다. 다시 시도해 주세요."),
        ),
        429 => (
            ("Too many tries", "Please wait a while and try again."),
            ("시도가 너무 많습니다", "잠시 기다린 후 다시 시도해 주세요."),
        ),
        502 => (
            ("The application can't be reached", "It may be starting or under repair. Please try again in a moment."),
            ("애플리케이션에 연결할 수 없습니다", "시작 중이거나 점검 중일 수 있습니다. 잠시 후 다시 시도해 주세요."),
        ),
        503 => (
            ("Not available right now", "This can't be done at the moment. Please try again in a moment."),
            ("지금은 사용할 수 없습니다", "지금은 처리할 수 없습니다. 잠시 후 다시 시도해 주세요."),
        ),
        504 => (
            ("The application did not answer", "It took too long to answer. Please try again in a moment."),
            ("애플리케이션이 응답하지 않습니다", "응답이 너무 오래 걸렸습니다. 잠시 후 다시 시도해 주세요."),
        ),
        500..600 => (
            ("Something went wrong", "The fault is on our side. Please try again in a moment."),
            ("문제가 발생했습니다", "서버에 문제가 있습니다. 잠시 후 다시 시도해 주세요."),
        ),
        _ => (
            ("This request can't be answered", "Something in it is not as it should be. Please go back and try again."),
            ("처리할 수 없는 요청입니다", "요청에 잘못된 부분이 있습니다. 뒤로 가서 다시 시도해 주세요."),
        ),
    };
    choose(language, english, korean)
}

/// The heading and the explanation for a form that came without a login.
pub(super) fn form_without_login(language: Language) -> (&'static str, &'static str) {
    choose(
        language,
        (
            "You are not signed in any more",
            "Nothing was sent on and nothing was saved, but nothing is lost: your browser still has what you typed.",
        ),
        (
            "로그인이 만료되었습니다",
            "아무것도 전송되거나 저장되지 않았습니다. 입력한 내용은 브라우저에 그대로 남아 있습니다.",
        ),
    )
}

/// The heading and the explanation where a form was sent by another site's page.
pub(super) fn cross_site(language: Language) -> (&'static str, &'static str) {
    choose(
        language,
        (
            "This came from another site",
            "For your safety nothing was done. Please open this site yourself and try again.",
        ),
        (
            "다른 사이트에서 보낸 요청입니다",
            "안전을 위해 아무것도 처리하지 않았습니다. 이 사이트를 직접 열어 다시 시도해 주세요.",
        ),
    )
}

/// The fixed words of one language, as the templates take them.
pub(super) fn word_values(language: Language) -> minijinja::Value {
    minijinja::Value::from(minijinja::value::Serde(words(language)))
}

/// The fixed words of one language.
pub(super) const fn words(language: Language) -> &'static Words {
    match language {
        Language::English => &ENGLISH,
        Language::Korean => &KOREAN,
    }
}

fn choose<T>(language: Language, english: T, korean: T) -> T {
    match language {
        Language::English => english,
        Language::Korean => korean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_there_in_both_languages_and_differs() {
        let as_map = |words: &Words| serde_json::to_value(words).unwrap().as_object().unwrap().clone();
        let (english, korean) = (as_map(&ENGLISH), as_map(&KOREAN));
        for (name, text) in &english {
            assert!(!text.as_str().unwrap().is_empty(), "{name}");
            assert_ne!(Some(text), korean.get(name), "{name}");
            assert!(!korean[name].as_str().unwrap().is_ascii(), "{name}");
        }
    }

    #[test]
    fn waiting_times_are_rounded_up() {
        for (seconds, said) in [(0, "a minute"), (60, "a minute"), (61, "2 minutes"), (300, "5 minutes")] {
            let text = Message::TooManyTries(seconds).text(Language::English);
            assert!(text.contains(said), "{seconds}: {text}");
        }
        assert!(Message::TooManyTries(61).text(Language::Korean).contains("2분"));
    }

    #[test]
    fn every_status_has_its_words() {
        for status in 400..600 {
            let status = StatusCode::from_u16(status).unwrap();
            let ((english, _), (korean, _)) = (fault(Language::English, status), fault(Language::Korean, status));
            assert_ne!(english, korean);
        }
    }
}
