// A person in Chromium: asked to log in, refused, let in, renewed, and logged out.
//
//   NODE_PATH=tests/.cache/npm/node_modules node browser.js URL NAME PASSWORD NEAR_HALF SCREENSHOTS
//
// URL is a gateway in front of a page that says `hello from the backend`; NEAR_HALF is a token with less than half of
// its lifetime left. Prints one line for each check and `N passed, N failed`; exits 1 when one failed.
"use strict";

const path = require("node:path");
const { chromium } = require("playwright-core");

const [url, name, password, nearHalf, screenshots] = process.argv.slice(2);
const greeting = "hello from the backend";
let passed = 0;
let failed = 0;

function check(what, holds, seen) {
  if (holds) {
    passed += 1;
    console.log(`ok: ${what}`);
  } else {
    failed += 1;
    console.log(`FAILED: ${what}: ${JSON.stringify(seen)}`);
  }
}

async function accessToken(context) {
  const cookies = await context.cookies(url);
  return cookies.find((cookie) => cookie.name === "access_token");
}

async function logIn(page, secret) {
  await page.fill("#username", name);
  await page.fill("#password", secret);
  await Promise.all([page.waitForNavigation(), page.click("button[type=submit]")]);
}

async function visit(browser, locale, colorScheme, javaScriptEnabled) {
  const label = `${locale} ${colorScheme}${javaScriptEnabled ? "" : " without JavaScript"}`;
  const context = await browser.newContext({
    locale, colorScheme, javaScriptEnabled, viewport: { width: 900, height: 700 },
  });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => {
    // The refused password's 401 is reported as an error too; it is asked for.
    if (message.type() === "error" && !message.text().includes("401")) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  const shoot = (what) =>
    page.screenshot({ path: path.join(screenshots, `${label.replaceAll(" ", "-")}-${what}.png`), fullPage: true });

  await page.goto(`${url}/report?year=2026`);
  check(`${label}: a protected page leads to the login`, new URL(page.url()).pathname === "/login", page.url());
  const language = await page.getAttribute("html", "lang");
  check(`${label}: in the person's language`, language === locale.slice(0, 2), language);
  const text = await page.innerText("body");
  check(`${label}: and script`, /[가-힣]/.test(text) === locale.startsWith("ko"), text);
  await shoot("login");

  await logIn(page, "a wrong password");
  const alert = await page.innerText("[role=alert]");
  check(`${label}: a wrong password is told`, alert.trim().length > 0, alert);
  check(`${label}: and brings no cookie`, (await accessToken(context)) === undefined);
  await shoot("wrong-password");

  await logIn(page, password);
  check(`${label}: the right one leads to the page`, page.url() === `${url}/report?year=2026`, page.url());
  check(`${label}: which is the backend's`, (await page.innerText("body")).includes(greeting));
  const cookie = await accessToken(context);
  check(`${label}: the cookie is kept from scripts`, cookie && cookie.httpOnly && cookie.sameSite === "Lax", cookie);

  if (javaScriptEnabled) {
    const answer = await page.evaluate(async () => {
      const response = await fetch("/check");
      return { status: response.status, body: await response.json() };
    });
    check(`${label}: /check says who it is`, answer.status === 200 && answer.body.username === name, answer);

    await context.addCookies([{ name: "access_token", value: nearHalf, url, httpOnly: true, sameSite: "Lax" }]);
    await page.goto(`${url}/`);
    const renewed = await accessToken(context);
    check(`${label}: a token near its half is renewed`, renewed && renewed.value !== nearHalf);
    await page.goto(`${url}/`);
    const kept = await accessToken(context);
    check(`${label}: and the new one kept`, renewed && kept && kept.value === renewed.value);
    await context.addCookies([{ ...cookie }]);
  }

  await page.goto(`${url}/account`);
  check(`${label}: the account page names the person`, (await page.innerText("h1")).includes(name));
  check(`${label}: and this browser`, (await page.locator(".sessions .badge").count()) === 1);
  await shoot("account");

  await Promise.all([page.waitForNavigation(), page.click("form[action$='/logout'] button")]);
  check(`${label}: logged out, the cookie is gone`, (await accessToken(context)) === undefined);
  await page.goto(`${url}/report`);
  check(`${label}: and the page asks again`, new URL(page.url()).pathname === "/login", page.url());
  await context.addCookies([{ ...cookie }]);
  await page.goto(`${url}/report`);
  check(`${label}: also with the old cookie put back`, new URL(page.url()).pathname === "/login", page.url());
  check(`${label}: the browser complained of nothing`, complaints.length === 0, complaints);
  await context.close();
}

async function main() {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    args: [
      "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync",
    ],
  });
  try {
    await visit(browser, "en-US", "light", true);
    await visit(browser, "en-US", "dark", true);
    await visit(browser, "ko-KR", "light", true);
    await visit(browser, "ko-KR", "dark", false);
  } finally {
    await browser.close();
  }
}

main()
  .catch((error) => {
    failed += 1;
    console.log(`FAILED: ${error.stack}`);
  })
  .finally(() => {
    console.log(`${passed} passed, ${failed} failed`);
    process.exit(failed === 0 && passed > 0 ? 0 : 1);
  });
