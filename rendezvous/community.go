package rendezvous

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/bodkin-net/bodkin/rendezvous/wire"
)

// What a community file has to say to be FabEdge's.
const (
	communityAPIVersion = "fabedge.io/v1alpha1"
	communityKind       = "Community"
)

// The annotation that is Bodkin's own.
const (
	annotationPrefix = "bodkin.net/"
	punchAnnotation  = annotationPrefix + "punch"
)

const (
	// maxCommunityFile is the bound Kubernetes sets for one ConfigMap.
	maxCommunityFile = 1 << 20
	// maxMembers bounds the pairs of one community, which grow with its
	// square: 512 members are 130,816 pairs and some 80 MB.
	maxMembers = 512
)

// Community is a named list of nodes, each of which may talk to every other.
type Community struct {
	Name    string   `json:"name"`
	Members []string `json:"members"` // "cluster.node", sorted, unique
	// Punch is how far punching may go between its members.
	Punch wire.Policy `json:"punch,omitempty"`
}

// CommunityError says what is wrong with a community file. Its text is one
// line.
type CommunityError struct {
	File     string
	Document int    // counted from 1; 0 when it is the file as a whole
	Line     int    // in the file, counted from 1; 0 when there is none to name
	Field    string // for example "spec.members[2]"; empty for the whole document
	Problem  string // what is wrong and what would be right
}

func (e *CommunityError) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Document > 0 {
		fmt.Fprintf(&b, ": document %d", e.Document)
	}
	if e.Line > 0 {
		fmt.Fprintf(&b, ", line %d", e.Line)
	}
	if e.Field != "" {
		b.WriteString(": " + e.Field)
	}
	return b.String() + ": " + e.Problem
}

// ParseCommunities reads FabEdge's Community documents, several to a file, and
// returns them in the order of the file: all of them, or with an error none.
// A file that is at fault gives a *CommunityError. file is only a name for
// messages.
//
// What a kubectl export adds (status, most of metadata) is accepted and
// ignored, as are documents without content.
func ParseCommunities(file string, r io.Reader) ([]Community, error) {
	return parseCommunities(file, r, nil)
}

// parseCommunities also refuses the communities that have an owner already: it
// maps their names to where they stand.
func parseCommunities(file string, r io.Reader, owners map[string]string) ([]Community, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxCommunityFile+1))
	if err != nil {
		return nil, fmt.Errorf("read communities %s: %w", file, err)
	}
	if len(data) > maxCommunityFile {
		return nil, &CommunityError{File: file, Problem: fmt.Sprintf("larger than %d bytes: split it", maxCommunityFile)}
	}
	var cs []Community
	taken := maps.Clone(owners)
	if taken == nil {
		taken = map[string]string{}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for number := 1; ; number++ {
		doc := communityDocument{file: file, number: number, taken: taken}
		var root yaml.Node
		if err := decoder.Decode(&root); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, doc.notYAML(err)
		}
		content := root.Content[0]
		if isNull(content) {
			continue
		}
		c, err := doc.community(content)
		if err != nil {
			return nil, err
		}
		taken[c.Name] = fmt.Sprintf("document %d", number)
		cs = append(cs, c)
	}
	if len(cs) == 0 {
		return nil, &CommunityError{File: file, Problem: "no document: at least one Community is expected"}
	}
	return cs, nil
}

// communityDocument is one YAML document of a community file. It walks the
// nodes by hand, because a strict decode into a struct names neither the path
// of a field nor, for a value of the right type but the wrong form, its line.
type communityDocument struct {
	file   string
	number int
	taken  map[string]string // names of communities that are elsewhere → where
}

func (d communityDocument) refuse(n *yaml.Node, field, format string, args ...any) error {
	return &CommunityError{
		File: d.file, Document: d.number, Line: n.Line, Field: field, Problem: fmt.Sprintf(format, args...),
	}
}

// notYAML takes over the parser's text, where alone the line stands.
func (d communityDocument) notYAML(err error) error {
	e := &CommunityError{File: d.file, Document: d.number}
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, what, ok := strings.Cut(rest, ": "); ok {
			if line, err := strconv.Atoi(number); err == nil {
				e.Line, text = line, what
			}
		}
	}
	e.Problem = "not YAML: " + strings.ReplaceAll(text, "\n", " ")
	return e
}

func (d communityDocument) community(root *yaml.Node) (Community, error) {
	top, err := d.mapping(root, "", "apiVersion", "kind", "metadata", "spec", "status")
	if err != nil {
		return Community{}, err
	}
	if err := d.constant(top, "apiVersion", communityAPIVersion); err != nil {
		return Community{}, err
	}
	if err := d.constant(top, "kind", communityKind); err != nil {
		return Community{}, err
	}
	metadata, err := d.mapping(top.get("metadata"), "metadata", "name", "namespace", "labels", "annotations",
		"creationTimestamp", "uid", "resourceVersion", "generation", "managedFields", "selfLink", "ownerReferences",
		"finalizers")
	if err != nil {
		return Community{}, err
	}
	name, err := d.text(metadata.get("name"), "metadata.name")
	if err != nil {
		return Community{}, err
	}
	if !isDNSName(name) {
		return Community{}, d.refuse(metadata.get("name"), "metadata.name",
			"%s is no name: at most 253 of a-z, 0-9, '-' and '.', each part beginning and ending with a letter or digit", quote(name))
	}
	if where, ok := d.taken[name]; ok {
		return Community{}, d.refuse(metadata.get("name"), "metadata.name",
			"%s is in %s already: merge the two or rename one", quote(name), where)
	}
	spec, err := d.mapping(top.get("spec"), "spec", "members")
	if err != nil {
		return Community{}, err
	}
	members, err := d.members(spec.get("members"))
	if err != nil {
		return Community{}, err
	}
	policy, err := d.policy(metadata.values["annotations"])
	return Community{Name: name, Members: members, Punch: policy}, err
}

// policy reads our annotation. All others are somebody else's, but for those
// that would be ours if they were written right.
func (d communityDocument) policy(annotations *yaml.Node) (wire.Policy, error) {
	const field = "metadata.annotations"
	if annotations == nil || isNull(annotations) {
		return "", nil
	}
	if annotations.Kind != yaml.MappingNode {
		return "", d.refuse(annotations, field, "is no mapping: write \"key: value\" lines")
	}
	var policy wire.Policy
	for i := 0; i+1 < len(annotations.Content); i += 2 {
		key, value := annotations.Content[i], resolve(annotations.Content[i+1])
		if !strings.HasPrefix(key.Value, annotationPrefix) {
			continue
		}
		path := field + "." + clip(key.Value)
		if key.Value != punchAnnotation {
			return "", d.refuse(key, path, "unknown annotation: known is %s", punchAnnotation)
		}
		if policy != "" {
			return "", d.refuse(key, path, "given twice: remove one")
		}
		text, err := d.text(value, path)
		if err != nil {
			return "", err
		}
		policy = wire.Policy(text)
		if text == "" || policy.Validate() != nil {
			return "", d.refuse(value, path, "is %s: want %s, %s or %s", quote(text), wire.PolicyAuto, wire.PolicyICEOnly, wire.PolicyNever)
		}
	}
	return policy, nil
}

func (d communityDocument) members(n *yaml.Node) ([]string, error) {
	const field = "spec.members"
	if n.Kind != yaml.SequenceNode && !isNull(n) {
		return nil, d.refuse(n, field, "is no list: write one cluster.node per line, each after \"- \"")
	}
	if len(n.Content) == 0 {
		return nil, d.refuse(n, field, "is empty: list at least one member as cluster.node")
	}
	if len(n.Content) > maxMembers {
		return nil, d.refuse(n, field, "has %d members, the limit is %d: split the community", len(n.Content), maxMembers)
	}
	members := make([]string, 0, len(n.Content))
	lines := make(map[string]int, len(n.Content))
	for i, item := range n.Content {
		field := fmt.Sprintf("%s[%d]", field, i)
		item = resolve(item)
		member, err := d.text(item, field)
		if err != nil {
			return nil, err
		}
		if !isDNSName(member) || !strings.Contains(member, ".") {
			return nil, d.refuse(item, field,
				"%s is no member: write cluster.node in lower case, for example beijing.edge1", quote(member))
		}
		if line, ok := lines[member]; ok {
			return nil, d.refuse(item, field, "%s stands in line %d already: remove one", quote(member), line)
		}
		lines[member] = item.Line
		members = append(members, member)
	}
	slices.Sort(members)
	return members, nil
}

// communityFields are the values of a mapping by key.
type communityFields struct {
	at     *yaml.Node // the mapping itself, to point at when a key is missing
	values map[string]*yaml.Node
}

// get returns the value of key, or a null that stands where it should have.
func (f communityFields) get(key string) *yaml.Node {
	if n, ok := f.values[key]; ok {
		return n
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Line: f.at.Line}
}

// mapping reads n as a mapping that has no other keys than the known ones.
func (d communityDocument) mapping(n *yaml.Node, field string, known ...string) (communityFields, error) {
	fields := communityFields{at: n, values: map[string]*yaml.Node{}}
	if n.Kind != yaml.MappingNode {
		if isNull(n) {
			return fields, d.refuse(n, field, "missing: %s is required", known[0])
		}
		return fields, d.refuse(n, field, "is no mapping: write \"key: value\" lines")
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], resolve(n.Content[i+1])
		path := strings.TrimPrefix(field+"."+clip(key.Value), ".")
		if key.Kind != yaml.ScalarNode || !slices.Contains(known, key.Value) {
			return fields, d.refuse(key, path, "unknown field: known here are %s", strings.Join(known, ", "))
		}
		if _, ok := fields.values[key.Value]; ok {
			return fields, d.refuse(key, path, "given twice: remove one")
		}
		fields.values[key.Value] = value
	}
	return fields, nil
}

func (d communityDocument) constant(fields communityFields, key, want string) error {
	got, err := d.text(fields.get(key), key)
	if err != nil {
		return err
	}
	if got != want {
		return d.refuse(fields.get(key), key, "is %s: only %s is read here", quote(got), quote(want))
	}
	return nil
}

// text reads n as a string. A number is none: as a name, 1.10 would be 1.1.
func (d communityDocument) text(n *yaml.Node, field string) (string, error) {
	switch {
	case isNull(n):
		return "", d.refuse(n, field, "missing: a text is required")
	case n.Kind != yaml.ScalarNode:
		return "", d.refuse(n, field, "is no text")
	case n.ShortTag() != "!!str":
		return "", d.refuse(n, field, "%s is no text: put it in quotes", quote(n.Value))
	}
	return n.Value, nil
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// resolve follows a YAML alias to what it stands for.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// clip keeps a message to one readable line whatever the file holds.
func clip(s string) string {
	const limit = 64
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

func quote(s string) string { return `"` + clip(s) + `"` }

// dnsName is a DNS-1123 subdomain but for its length.
var dnsName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$`)

func isDNSName(s string) bool { return len(s) <= 253 && dnsName.MatchString(s) }

// Pairs returns every two nodes that share a community, with the names of the
// communities they share, sorted.
func Pairs(cs []Community) map[wire.PairID][]string {
	pairs := map[wire.PairID][]string{}
	for _, c := range cs {
		for i, a := range c.Members {
			for _, b := range c.Members[i+1:] {
				if a != b {
					id := wire.NewPairID(a, b)
					pairs[id] = append(pairs[id], c.Name)
				}
			}
		}
	}
	for id, names := range pairs {
		slices.Sort(names)
		pairs[id] = slices.Compact(names)
	}
	return pairs
}
