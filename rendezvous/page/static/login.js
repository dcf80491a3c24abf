// The login form. Without this module it posts by itself; with it, a refusal is
// said beside the form and the view that was asked for is opened afterwards.
const form = document.getElementById("form");
const token = document.getElementById("token");
const error = document.getElementById("error");

form.addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  error.hidden = true;
  try {
    const answer = await fetch("login", { method: "POST", body: new URLSearchParams({ token: token.value.trim() }), redirect: "manual" });
    if (answer.ok || answer.type === "opaqueredirect") {
      location.replace("./" + location.hash);
      return;
    }
    const text = (await answer.text()).trim();
    let said = text;
    try {
      said = JSON.parse(text).error ?? text;
    } catch { /* words as they are */ }
    throw new Error(said || `the rendezvous answered ${answer.status}`);
  } catch (refused) {
    error.textContent = refused instanceof TypeError ? "The rendezvous cannot be reached." : refused.message;
    error.hidden = false;
    token.select();
    token.focus();
  }
});
