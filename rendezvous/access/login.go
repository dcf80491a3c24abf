package access

import (
	"crypto/rand"
	"net/http"
	"sync"
	"time"

	"github.com/bodkin-net/bodkin/store"
)

const (
	// loginLifetime is a working day and some.
	loginLifetime = 12 * time.Hour
	// maxLogins bounds the memory of logins that nobody ended.
	maxLogins = 1000
	// maxForm bounds the body of a login, in bytes.
	maxForm = 4096
	// loginCookie holds the login's secret.
	loginCookie = "bodkin-login"
)

// logins are the sessions of browsers, kept by the hash of their cookie: what is
// read from memory opens nothing.
type logins struct {
	mu     sync.Mutex
	byHash map[string]login
}

type login struct {
	// credential and secret, its hash, name what was logged in with: one that was
	// created anew under the name is another one.
	credential, secret string
	until              time.Time
}

// start begins a login and returns its cookie's value. Without room the one that
// would end first ends.
func (l *logins) start(c store.Credential, now time.Time) (cookie string) {
	cookie = rand.Text()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byHash == nil {
		l.byHash = map[string]login{}
	}
	if len(l.byHash) >= maxLogins {
		first := ""
		for hash, s := range l.byHash {
			if first == "" || s.until.Before(l.byHash[first].until) {
				first = hash
			}
		}
		delete(l.byHash, first)
	}
	l.byHash[Hash(cookie)] = login{credential: c.Name, secret: c.SecretSHA256, until: now.Add(loginLifetime)}
	return cookie
}

func (l *logins) get(cookie string, now time.Time) (login, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.byHash[Hash(cookie)]
	if ok && !now.Before(s.until) {
		delete(l.byHash, Hash(cookie))
		return login{}, false
	}
	return s, ok
}

func (l *logins) end(cookie string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byHash, Hash(cookie))
}

// loggedIn is the credential of a request's login, the zero one if there is none:
// nobody has logged in, or what they logged in with has ended since.
func (g *Gate) loggedIn(r *http.Request, now time.Time) (store.Credential, error) {
	cookie, err := r.Cookie(loginCookie)
	if err != nil {
		return store.Credential{}, nil //nolint:nilerr // no cookie is no error
	}
	s, ok := g.logins.get(cookie.Value, now)
	if !ok {
		return store.Credential{}, nil
	}
	credentials, err := g.Credentials()
	if err != nil {
		return store.Credential{}, err
	}
	for _, c := range credentials {
		if c.Name == s.credential && c.SecretSHA256 == s.secret && !expired(c, now) {
			return c, nil
		}
	}
	g.logins.end(cookie.Value)
	return store.Credential{}, nil
}

// Login takes the form of the login page, whose field "token" holds a token, and
// sends the browser to the page with a cookie. Errors are Identify's.
func (g *Gate) Login(w http.ResponseWriter, r *http.Request, now time.Time) error {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	token := r.PostFormValue("token")
	if token == "" {
		return ErrUnauthenticated
	}
	c, err := g.verify(r, token, now)
	if err != nil {
		return err
	}
	http.SetCookie(w, g.cookie(r, g.logins.start(c, now), int(loginLifetime.Seconds())))
	http.Redirect(w, r, "/", http.StatusSeeOther)
	return nil
}

// Logout ends the login of a request, if there is one.
func (g *Gate) Logout(w http.ResponseWriter, r *http.Request) {
	if cookie, err := r.Cookie(loginCookie); err == nil {
		g.logins.end(cookie.Value)
	}
	http.SetCookie(w, g.cookie(r, "", -1))
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

func (g *Gate) cookie(r *http.Request, value string, maxAge int) *http.Cookie {
	return &http.Cookie{ //nolint:gosec // on loopback there is no TLS
		Name: loginCookie, Value: value, Path: "/", MaxAge: maxAge,
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	}
}
