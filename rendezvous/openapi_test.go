package rendezvous

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3gen"
	"go.yaml.in/yaml/v3"

	"github.com/bodkin-net/bodkin/rendezvous/access"
	"github.com/bodkin-net/bodkin/rendezvous/wire"
	"github.com/bodkin-net/bodkin/store"
)

// openAPIFile is made of the routes and of the types that go in and out:
//
//	BODKIN_UPDATE=1 go test ./rendezvous -run TestOpenAPI
const openAPIFile = "../docs/openapi.yaml"

// queries are what routes take in the address.
var queries = map[string][][2]string{
	"GET /api/v1/pairs": {
		{"state", "Only pairs in that state: direct, relayed, down, or punching."}, {"node", "Only pairs of that node."},
		{"reason", "Only pairs with just that reason."}, {"limit", "At most so many."},
	},
	"GET /api/v1/events": {
		{"pair", "Only events of that pair, A|B."}, {"node", "Only events of that node and of its pairs."}, {"limit", "At most so many, 100 unless told otherwise."},
	},
	"GET /api/v1/events/stream": {
		{"pair", "Only events of that pair, A|B."}, {"node", "Only events of that node and of its pairs."},
		{"after", "Begin after the event of that ID, as far back as the last 1000; the header Last-Event-ID takes precedence. From now on without either."},
	},
	"GET /api/v1/audit":       {{"limit", "At most so many, 100 unless told otherwise."}},
	"PUT /api/v1/communities": {{"file", "What the communities are said to come from."}},
	"POST /api/v1/forecast":   {{"file", "What the file is called in errors."}},
}

// texts are the types that are one string in JSON.
var texts = map[reflect.Type][2]string{
	reflect.TypeFor[netip.AddrPort](): {"An IP address and a port, such as 198.51.100.1:4500 or [2001:db8::1]:4500.", "198.51.100.1:4500"},
	reflect.TypeFor[netip.Prefix]():   {"A network in CIDR, such as 10.1.2.0/24.", "10.1.2.0/24"},
}

// enums are the values of types that have few.
var enums = map[reflect.Type][]any{
	reflect.TypeFor[State]():                {Direct, Relayed, Down},
	reflect.TypeFor[AttemptOutcome]():       {AttemptRunning, AttemptDirect, AttemptFailed, AttemptCancelled},
	reflect.TypeFor[EventKind]():            {EventPair, EventAttempt, EventNode, EventAddress, EventRefused, EventCommunity, EventChange},
	reflect.TypeFor[access.Role]():          {access.Viewer, access.Admin},
	reflect.TypeFor[store.AdmissionState](): {store.Approved, store.Pending, store.Revoked},
	reflect.TypeFor[wire.Role]():            {wire.Controlling, wire.Controlled},
	reflect.TypeFor[wire.EndpointType]():    {wire.Edge, wire.Connector},
}

// describer makes schemas of types, with their comments.
type describer struct {
	*openapi3gen.Generator
	schemas  openapi3.Schemas
	comments map[string]string // of package.Type and package.Type.Field
}

func newDescriber(t *testing.T) *describer {
	d := &describer{schemas: openapi3.Schemas{}, comments: map[string]string{}}
	for _, dir := range []string{".", "wire", "../store", "access"} {
		d.read(t, dir)
	}
	d.Generator = openapi3gen.NewGenerator(
		openapi3gen.CreateComponentSchemas(openapi3gen.ExportComponentSchemasOptions{ExportComponentSchemas: true, ExportTopLevelSchema: true}),
		openapi3gen.SchemaCustomizer(d.customise),
	)
	for typ, text := range texts {
		d.schemas[typ.Name()] = &openapi3.SchemaRef{Value: &openapi3.Schema{Type: &openapi3.Types{"string"}, Description: text[0], Example: text[1]}}
	}
	return d
}

// read gathers the comments of a package's types.
func (d *describer) read(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(gotoken.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			decl, ok := decl.(*ast.GenDecl)
			if !ok || decl.Tok != gotoken.TYPE {
				continue
			}
			for _, spec := range decl.Specs {
				d.readType(file.Name.Name, spec.(*ast.TypeSpec), decl.Doc)
			}
		}
	}
}

func (d *describer) readType(pkg string, spec *ast.TypeSpec, doc *ast.CommentGroup) {
	d.comments[pkg+"."+spec.Name.Name] = oneLine(doc.Text())
	fields, ok := spec.Type.(*ast.StructType)
	if !ok {
		return
	}
	for _, f := range fields.Fields.List {
		for _, name := range f.Names {
			d.comments[pkg+"."+spec.Name.Name+"."+name.Name] = oneLine(f.Doc.Text() + " " + f.Comment.Text())
		}
	}
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// customise adds what Go's types say beyond kinds: comments, values, and which
// fields are always there.
func (d *describer) customise(_ string, t reflect.Type, _ reflect.StructTag, schema *openapi3.Schema) error {
	schema.Nullable = false // what is nil is left out
	schema.Enum = enums[t]
	if _, isText := texts[t]; isText || t.Kind() != reflect.Struct || schema.Properties == nil {
		return nil
	}
	schema.Description = d.comments[t.String()]
	for _, f := range reflect.VisibleFields(t) {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || name == "" {
			continue
		}
		if !strings.Contains(options, "omit") {
			schema.Required = append(schema.Required, name)
		}
		owner := t // of the field, which may be of an embedded type
		if len(f.Index) > 1 {
			owner = t.FieldByIndex(f.Index[:len(f.Index)-1]).Type
		}
		if p := schema.Properties[name]; p != nil && !strings.HasPrefix(p.Ref, "#") {
			p.Value.Description = d.comments[owner.String()+"."+f.Name]
		}
	}
	slices.Sort(schema.Required)
	return nil
}

// schema is the schema of a value's type.
func (d *describer) schema(t *testing.T, v any) *openapi3.SchemaRef {
	t.Helper()
	ref, err := d.NewSchemaRefForValue(v, d.schemas)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

var pathParameter = regexp.MustCompile(`\{(\w+)\}`)

// operation describes one route.
func (d *describer) operation(t *testing.T, rt route) *openapi3.Operation {
	op := openapi3.NewOperation()
	op.Summary = rt.summary
	op.OperationID = strings.ToLower(rt.method) + strings.ReplaceAll(pathParameter.ReplaceAllString(strings.TrimPrefix(rt.pattern, "/api/v1"), "$1"), "/", "-")
	op.Extensions = map[string]any{"x-role": cmpOrNobody(rt.role)}
	if rt.role == access.Nobody {
		op.Security = openapi3.NewSecurityRequirements()
	}
	for _, name := range pathParameter.FindAllStringSubmatch(rt.pattern, -1) {
		op.AddParameter(openapi3.NewPathParameter(name[1]).WithSchema(openapi3.NewStringSchema()))
	}
	for _, q := range queries[rt.method+" "+rt.pattern] {
		op.AddParameter(openapi3.NewQueryParameter(q[0]).WithDescription(q[1]).WithSchema(openapi3.NewStringSchema()))
	}
	switch {
	case rt.request == communityBody{}:
		op.RequestBody = &openapi3.RequestBodyRef{Value: openapi3.NewRequestBody().WithRequired(true).
			WithContent(openapi3.NewContentWithSchema(openapi3.NewStringSchema(), []string{"application/yaml"}))}
	case rt.request != nil:
		op.RequestBody = &openapi3.RequestBodyRef{Value: openapi3.NewRequestBody().WithRequired(true).WithJSONSchemaRef(d.schema(t, rt.request))}
	}
	ok := openapi3.NewResponse().WithDescription("Done.")
	code := "200"
	switch {
	case rt.pattern == "/login", rt.pattern == "/logout":
		code = "303"
	case rt.answer == nil:
		code = "204"
	case rt.answer == plainText(""):
		ok.WithContent(openapi3.NewContentWithSchema(openapi3.NewStringSchema(), []string{"text/plain"}))
	case strings.HasSuffix(rt.pattern, "/stream"):
		ok.WithContent(openapi3.NewContentWithSchemaRef(d.schema(t, rt.answer), []string{"text/event-stream"}))
	default:
		ok.WithJSONSchemaRef(d.schema(t, rt.answer))
	}
	op.Responses = openapi3.NewResponses(openapi3.WithName(code, ok))
	op.Responses.Set("default", &openapi3.ResponseRef{Ref: "#/components/responses/Error"})
	return op
}

func cmpOrNobody(r access.Role) string {
	if r == access.Nobody {
		return "nobody"
	}
	return string(r)
}

// describe is the whole description.
func describe(t *testing.T, routes []route) *openapi3.T {
	t.Helper()
	d := newDescriber(t)
	doc := &openapi3.T{
		OpenAPI: "3.0.3",
		Info: &openapi3.Info{
			Title: "Bodkin rendezvous", Version: "v1",
			Description: "The API of `bodkin rendezvous`, on its status listener and on its unix socket. x-role says who may: viewer reads, admin changes. " +
				"Who comes by the unix socket is an admin; who comes by loopback without a credential is a viewer. " +
				"Errors are one line: 401 no credential, 403 not permitted, 404 unknown, 409 not possible as things are, 422 not valid, 429 too many failed logins, 503 not ready, 504 no answer from a node.",
			License: &openapi3.License{Name: "Apache-2.0"},
		},
		Servers: openapi3.Servers{{URL: "http://127.0.0.1:7480", Description: "the default status listener"}},
		Paths:   openapi3.NewPaths(),
		Components: &openapi3.Components{
			SecuritySchemes: openapi3.SecuritySchemes{
				"token":       {Value: openapi3.NewSecurityScheme().WithType("http").WithScheme("bearer").WithDescription("What `bodkin access create` printed; also taken as the password of Basic.")},
				"login":       {Value: openapi3.NewSecurityScheme().WithType("apiKey").WithIn("cookie").WithName("bodkin-login").WithDescription("The page's login, POST /login. Requests that change something must be of the same origin.")},
				"certificate": {Value: &openapi3.SecurityScheme{Type: "http", Scheme: "mutual", Description: "A client certificate of `bodkin access certificate`."}},
			},
			Responses: openapi3.ResponseBodies{"Error": {Value: openapi3.NewResponse().WithDescription("Why not, in one line.").WithJSONSchemaRef(d.schema(t, apiError{}))}},
		},
	}
	doc.Security = *openapi3.NewSecurityRequirements().
		With(openapi3.NewSecurityRequirement().Authenticate("token")).
		With(openapi3.NewSecurityRequirement().Authenticate("login")).
		With(openapi3.NewSecurityRequirement().Authenticate("certificate"))
	for _, rt := range routes {
		if rt.summary != "" {
			doc.AddOperation(rt.pattern, rt.method, d.operation(t, rt))
		}
	}
	doc.Components.Schemas = d.schemas
	return doc
}

// asYAML is the description with its parts in the order in which people read it.
func asYAML(t *testing.T, doc *openapi3.T) []byte {
	t.Helper()
	b, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	var parts map[string]any
	if err := json.Unmarshal(b, &parts); err != nil {
		t.Fatal(err)
	}
	out := bytes.NewBufferString("# Made of the routes and types of package rendezvous: see rendezvous/openapi_test.go.\n")
	for _, name := range []string{"openapi", "info", "servers", "security", "paths", "components"} {
		enc := yaml.NewEncoder(out)
		enc.SetIndent(2)
		if err := enc.Encode(map[string]any{name: parts[name]}); err != nil {
			t.Fatal(err)
		}
		delete(parts, name)
	}
	if len(parts) != 0 {
		t.Fatalf("parts left: %v", parts)
	}
	return out.Bytes()
}

// The description that is committed is that of the routes.
func TestOpenAPI(t *testing.T) {
	r := newIssuingSite(t).start()
	routes := append(r.server.routes(), loginRoutes(r.server.gate)...)
	text := asYAML(t, describe(t, routes))
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context(), openapi3.DisableExamplesValidation()); err != nil {
		t.Errorf("no OpenAPI: %v", err)
	}
	if os.Getenv("BODKIN_UPDATE") != "" {
		if err := os.WriteFile(openAPIFile, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	committed, err := os.ReadFile(openAPIFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(committed, text) {
		t.Errorf("%s is not of these routes: BODKIN_UPDATE=1 go test ./rendezvous -run TestOpenAPI", openAPIFile)
	}
	r.checkAnswers(doc, routes)
}

// checkAnswers holds what a rendezvous answers that has something to tell against
// the description.
func (r *running) checkAnswers(doc *openapi3.T, routes []route) {
	r.t.Helper()
	r.history()
	admin := r.serving(access.Caller{Who: "anna", Role: access.Admin})
	names := strings.NewReplacer("{a}", string(edge1), "{b}", string(edge2), "{name}", string(edge1), "{community}", "all")
	for _, rt := range routes {
		where := rt.method + " " + rt.pattern
		op := doc.Paths.Value(rt.pattern)
		if rt.summary == "" {
			continue
		}
		if op == nil || op.GetOperation(rt.method) == nil {
			r.t.Errorf("%s is not described", where)
			continue
		}
		if rt.method != http.MethodGet || rt.role == access.Nobody || strings.HasSuffix(rt.pattern, "/stream") || strings.HasSuffix(rt.pattern, "/sas") || rt.pattern == "/metrics" {
			continue
		}
		w := apiCall(r.t, admin, rt.method, names.Replace(rt.pattern), nil)
		if w.Code != http.StatusOK {
			r.t.Errorf("%s: %d %s", where, w.Code, w.Body)
			continue
		}
		schema := op.GetOperation(rt.method).Responses.Value("200").Value.Content.Get("application/json").Schema.Value
		r.check(schema, rt.answer, where, w.Body.Bytes())
	}
	for _, tt := range []struct {
		method, pattern, path string
		in, answer            any
	}{
		{"POST", "/api/v1/tokens", "/api/v1/tokens", NewToken{Name: string(edge3)}, CreatedToken{}},
		{"POST", "/api/v1/access", "/api/v1/access", NewCredential{Name: "carla", Role: access.Viewer}, CreatedCredential{}},
		{"POST", "/api/v1/access/{name}/certificate", "/api/v1/access/carla/certificate", CertificateRequest{Role: access.Viewer, CSR: newRequest(r.t, newKey(r.t))}, OperatorCertificate{}},
		{"POST", "/api/v1/forecast", "/api/v1/forecast", communityFileOf("all", string(edge1), string(edge2)), Forecast{}},
		{"PUT", "/api/v1/communities", "/api/v1/communities", communityFileOf("all", string(edge1), string(edge2)), AppliedCommunities{}},
		{"PATCH", "/api/v1/nodes/{name}", "/api/v1/nodes/" + string(edge1), `{"note": "behind the bar"}`, AdmissionView{}},
		{"POST", "/api/v1/nodes/{name}/revoke", "/api/v1/nodes/" + string(edge1) + "/revoke", Revocation{Reason: "stolen"}, RevokedNode{}},
	} {
		w := request(r.t, admin, tt.method, tt.path, tt.in)
		where := tt.method + " " + tt.pattern
		if w.Code != http.StatusOK {
			r.t.Errorf("%s: %d %s", where, w.Code, w.Body)
			continue
		}
		schema := doc.Paths.Value(tt.pattern).GetOperation(tt.method).Responses.Value("200").Value.Content.Get("application/json").Schema.Value
		r.check(schema, tt.answer, where, w.Body.Bytes())
	}
}

// check holds an answer against its schema, and against its type, in which
// everything has to be that is in the answer.
func (r *running) check(schema *openapi3.Schema, typ any, where string, body []byte) {
	r.t.Helper()
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		r.t.Errorf("%s: %v", where, err)
	}
	if err := schema.VisitJSON(v, openapi3.MultiErrors(), openapi3.EnableFormatValidation()); err != nil {
		r.t.Errorf("%s: not as described: %v\n%s", where, err, body)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(reflect.New(reflect.TypeOf(typ)).Interface()); err != nil {
		r.t.Errorf("%s: not of its type: %v", where, err)
	}
}

// history has two nodes join, a pair punch and be direct, and operators do things.
func (r *running) history() {
	r.t.Helper()
	r.apply(community("all", edge1, edge2))
	r.token(NewToken{Name: string(edge4), Subnets: []string{"10.9.8.0/24"}})
	r.credential("grafana", access.Viewer)
	one, two := r.come(edge1, r.enrol(edge1, NewToken{})), r.come(edge2, r.enrol(edge2, NewToken{}))
	one.expectPeers(edge2)
	two.expectPeers(edge1)
	one.askSTUN()
	two.askSTUN()
	first := expect[*wire.Punch](one)
	expect[*wire.Punch](two)
	one.send(&wire.Usage{Seconds: 60, Signalling: 1000, STUN: 500, Peers: map[wire.NodeName]int64{edge2: 300}})
	for _, p := range []*peer{one, two} {
		other := map[wire.NodeName]wire.NodeName{edge1: edge2, edge2: edge1}[p.name]
		p.send(&wire.Report{Peer: other, Attempt: first.Attempt, Outcome: wire.OutcomeDirect, ElapsedMs: 80,
			Path: wire.Path{Kind: wire.PathServerReflexive, Remote: netip.MustParseAddrPort("203.0.113.9:4500")}, Steps: steps(wire.StepStart, wire.StepBytes)})
	}
	r.until("direct", func(s Snapshot) bool { return pairIn(s, edge1, edge2).State == Direct })
}

// Every query that is described is one that its route looks at: a value that
// cannot be is refused, or changes the answer.
func TestDescribedQueries(t *testing.T) {
	r := newSite(t).start()
	h := r.serving(access.Socket)
	described := map[string]bool{}
	for _, rt := range r.server.routes() {
		described[rt.method+" "+rt.pattern] = true
	}
	for where, parameters := range queries {
		if !described[where] {
			t.Errorf("%s is no route", where)
		}
		for _, p := range parameters {
			if p[0] == "node" || p[0] == "reason" || p[0] == "file" {
				continue // any text may be meant
			}
			method, path, _ := strings.Cut(where, " ")
			w := apiCall(t, h, method, fmt.Sprintf("%s?%s=~", path, p[0]), func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("")) })
			if w.Code != 422 || !strings.Contains(w.Body.String(), p[0]+": ") {
				t.Errorf("%s, %s=~: %d %s", where, p[0], w.Code, w.Body)
			}
		}
	}
}
