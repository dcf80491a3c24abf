package page

import (
	"compress/gzip"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func fetch(t *testing.T, path string, header http.Header) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.Header = header
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w
}

func read(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFiles(t *testing.T) {
	for path, contentType := range map[string]string{
		"/": "text/html", "/login": "text/html", "/page/page.css": "text/css", "/page/main.js": "text/javascript", "/page/icon.svg": "image/svg+xml",
	} {
		plain := fetch(t, path, http.Header{})
		body := read(t, plain.Body)
		if got := plain.Header().Get("Content-Type"); plain.Code != http.StatusOK || !strings.HasPrefix(got, contentType) || body == "" {
			t.Errorf("%s: %d, %s, %d bytes", path, plain.Code, got, len(body))
		}
		again := fetch(t, path, http.Header{"If-None-Match": {plain.Header().Get("ETag")}})
		if again.Code != http.StatusNotModified {
			t.Errorf("%s, unchanged: %d, want 304", path, again.Code)
		}
		zipped := fetch(t, path, http.Header{"Accept-Encoding": {"gzip, br"}})
		z, err := gzip.NewReader(zipped.Body)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if read(t, z) != body {
			t.Errorf("%s: another file when it is compressed", path)
		}
	}
	for _, path := range []string{"/page/", "/page/index.html", "/nodes", "/page/none.js"} {
		if r := fetch(t, path, http.Header{}); r.Code != http.StatusNotFound {
			t.Errorf("%s: %d, want 404", path, r.Code)
		}
	}
}

// The policy forbids inline code and styles and other origins: what broke it would
// not be run. Texts become markup in none of the ways there are.
func TestFilesKeepThePolicy(t *testing.T) {
	forbidden := regexp.MustCompile(`<style|\sstyle=|<script>|\son[a-z]+=|https?://|javascript:|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser`)
	allowed := regexp.MustCompile(`"?http://www\.w3\.org/2000/svg"?`) // a name, not a place
	err := fs.WalkDir(static, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(static, path)
		if found := forbidden.FindString(allowed.ReplaceAllString(string(content), "")); found != "" {
			t.Errorf("%s contains %q", path, found)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// The shell has the browser load at once what the first view imports, or each
// module would wait for the one that imports it.
func TestShellPreloadsTheFirstView(t *testing.T) {
	shell, err := fs.ReadFile(static, "static/index.html")
	if err != nil {
		t.Fatal(err)
	}
	imported := map[string]bool{}
	var follow func(name string)
	follow = func(name string) {
		if imported[name] {
			return
		}
		imported[name] = true
		content, err := fs.ReadFile(static, "static/"+name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^import .* from "\./(.+)";`).FindAllStringSubmatch(string(content), -1) {
			follow(m[1])
		}
	}
	follow("main.js")
	delete(imported, "main.js")
	for name := range imported {
		if !strings.Contains(string(shell), `<link rel="modulepreload" href="page/`+name+`">`) {
			t.Errorf("index.html does not preload %s", name)
		}
	}
	if n := strings.Count(string(shell), "modulepreload"); n != len(imported) {
		t.Errorf("index.html preloads %d modules, the first view imports %d", n, len(imported))
	}
}
