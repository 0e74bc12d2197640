{{/*
The configuration of nats-server. What a user may publish and hear is a list of exact subjects: not a task, a verdict, or a
request that makes, changes or purges a stream or consumer. `tests/chart` tries each on a real server. One way around stays
open: nats-server does not check the *reply* subject of a request, so a hostile holder of the agents' password can have an
answer sent where it may not publish itself (docs/limits.md). What it sends there opens for nobody, but it can purge.
Passwords come from the environment, since a variable there is the one thing that an unquoted $NAME stands for.
*/}}
{{- define "merlin.nats.conf" -}}
{{- $ns := .Release.Namespace -}}
{{- $root := printf "merlin.v1.%s" $ns -}}
{{- $tasks := printf "MERLIN_TASKS_%s" $ns -}}
{{- $reports := printf "MERLIN_REPORTS_%s" $ns -}}
{{- $control := printf "MERLIN_CONTROL_%s" $ns -}}
server_name: {{ include "merlin.fullname" . }}-nats-0
listen: "0.0.0.0:4222"
# Within the pod only: this port knows no passwords.
http: "127.0.0.1:8222"
max_payload: {{ .Values.nats.maxPayload }}

tls {
  cert_file: "/etc/nats/tls/tls.crt"
  key_file: "/etc/nats/tls/tls.key"
  min_version: "1.2"
  # No word in the clear, so nothing that somebody on the way could change before encryption begins.
  handshake_first: true
  timeout: 5
}

jetstream {
  store_dir: "/data"
  # A confirmed write survives a crash of the node, not only of the process.
  sync_interval: always
  max_file_store: {{ .Values.nats.maxFileStore }}
  max_memory_store: 256Mi
}

accounts {
  MERLIN {
    jetstream: enabled
    users: [
      {
        user: operator
        password: $MERLIN_OPERATOR_PASSWORD
        permissions {
          publish {
            allow: [
              "{{ $root }}.>"
              "$JS.API.INFO"
              {{- range list $tasks $reports $control }}
              "$JS.API.STREAM.CREATE.{{ . }}"
              "$JS.API.STREAM.INFO.{{ . }}"
              "$JS.API.STREAM.UPDATE.{{ . }}"
              "$JS.API.STREAM.PURGE.{{ . }}"
              "$JS.API.DIRECT.GET.{{ . }}"
              "$JS.API.DIRECT.GET.{{ . }}.>"
              {{- end }}
              {{- range list $tasks $reports }}
              "$JS.API.CONSUMER.CREATE.{{ . }}"
              "$JS.API.CONSUMER.CREATE.{{ . }}.>"
              "$JS.API.CONSUMER.DURABLE.CREATE.{{ . }}.*"
              "$JS.API.CONSUMER.INFO.{{ . }}.*"
              "$JS.API.CONSUMER.LIST.{{ . }}"
              "$JS.API.CONSUMER.NAMES.{{ . }}"
              "$JS.API.CONSUMER.DELETE.{{ . }}.*"
              {{- end }}
            ]
          }
          subscribe { allow: ["_INBOX_operator.>", "{{ $root }}.heartbeat.*.*"] }
        }
      }
      {
        user: agents
        password: $MERLIN_AGENTS_PASSWORD
        permissions {
          publish {
            allow: [
              "{{ $root }}.heartbeat.*.*"
              "{{ $root }}.report.*.*"
              "$JS.API.DIRECT.GET.{{ $reports }}"
              "$JS.API.DIRECT.GET.{{ $control }}"
              "$JS.API.CONSUMER.MSG.NEXT.{{ $tasks }}.*"
              # An answer's subject has two forms: with domain and account, and without.
              "$JS.ACK.{{ $tasks }}.>"
              "$JS.ACK.*.*.{{ $tasks }}.>"
            ]
            deny: ["{{ $root }}.report.*.verdict"]
          }
          subscribe { allow: ["_INBOX_agents.>", "{{ $root }}.control.>", "{{ $root }}.rollcall"] }
        }
      }
    ]
  }
}
{{- end -}}
