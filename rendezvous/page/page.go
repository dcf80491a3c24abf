// Package page is the status page: what a browser gets, and nothing of what it
// shows. The shell and its ES modules are the same for everybody; the values come
// from the API and its stream of events, with the reader's own credential.
//
//	static/main.js      routes of the location's hash, banners, one view at a time
//	static/api.js       requests; live.js the stream; dom.js building and morphing
//	static/words.js     every value in words
//	static/<view>.js    one per view, loaded when it is opened
//
// Every text reaches the document as a text node, so that nothing a node calls
// itself is markup, and Policy forbids inline code and styles, so that it would
// not matter.
package page

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
)

// Policy is the Content-Security-Policy under which the page works. Forms are the
// login and the logout.
const Policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; " +
	"connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

//go:embed static
var static embed.FS

// file is a static file as it goes out.
type file struct {
	contentType, tag string
	plain, zipped    []byte
}

// Handler serves the page at /, the login form at /login and their files below
// /page/. It holds no secret and asks for no credential.
func Handler() http.Handler {
	files := load(static)
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", files["index.html"])
	mux.Handle("GET /login", files["login.html"])
	for name, f := range files {
		if path.Ext(name) != ".html" {
			mux.Handle("GET /page/"+name, f)
		}
	}
	return mux
}

// load reads the embedded files; what fails here would fail at every start.
func load(from fs.FS) map[string]*file {
	files := map[string]*file{}
	names, err := fs.Glob(from, "static/*")
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		content, err := fs.ReadFile(from, name)
		if err != nil {
			panic(err)
		}
		sum := sha256.Sum256(content)
		f := &file{contentType: contentType(name), tag: `"` + hex.EncodeToString(sum[:8]) + `"`, plain: content}
		var zipped bytes.Buffer
		w, _ := gzip.NewWriterLevel(&zipped, gzip.BestCompression) // a level that exists
		_, _ = w.Write(content)                                    // a buffer takes everything
		_ = w.Close()
		f.zipped = zipped.Bytes()
		files[path.Base(name)] = f
	}
	return files
}

// contentType does not ask the machine: what it calls .js differs.
func contentType(name string) string {
	switch path.Ext(name) {
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return mime.TypeByExtension(path.Ext(name))
}

// ServeHTTP answers with the file, or that it has not changed.
func (f *file) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-cache") // asked for each time, sent when changed
	h.Set("ETag", f.tag)
	h.Set("Vary", "Accept-Encoding")
	if r.Header.Get("If-None-Match") == f.tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", f.contentType)
	body := f.plain
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body = f.zipped
	}
	_, _ = w.Write(body) // a browser that is gone needs no answer
}
