{{/* Fails with one sentence for the first thing that contradicts. */}}
{{- define "delta-sink.validate" -}}
{{- $values := .Values -}}
{{- $config := $values.config | default dict -}}
{{- if and $config $values.existingConfigMap -}}
{{- fail "config and existingConfigMap: give one of them" -}}
{{- end -}}
{{- if not (or $config $values.existingConfigMap) -}}
{{- fail "config: it is empty; write the sink's file there, or name an existingConfigMap" -}}
{{- end -}}
{{- include "delta-sink.validateScale" . -}}
{{- range $component := list "writer" "compactor" "vacuum" -}}
{{- $group := get $values $component -}}
{{- $grace_s := add 3 (div (dig "shutdown" "grace_ms" 25000 $config | int64) 1000) -}}
{{- if and $group.enabled (lt ($group.terminationGracePeriodSeconds | int64) $grace_s) -}}
{{- fail (printf "%s.terminationGracePeriodSeconds: %v is less than shutdown.grace_ms and the pause before it need: %d" $component $group.terminationGracePeriodSeconds $grace_s) -}}
{{- end -}}
{{- end -}}
{{- include "delta-sink.validateNames" . -}}
{{- range $values.env -}}
{{- if and (hasKey . "value") (regexMatch "PASSWORD|SECRET|TOKEN|PRIVATE_KEY" .name) -}}
{{- fail (printf "env: %s looks like a secret and stands there as plain text; use valueFrom.secretKeyRef or envFrom" .name) -}}
{{- end -}}
{{- end -}}
{{- if not $values.existingConfigMap -}}
{{- include "delta-sink.validateConfig" . -}}
{{- include "delta-sink.validateSecrets" . -}}
{{- end -}}
{{- end -}}

{{/* A key that is there twice is refused by a strict API server, and by others taken as either. */}}
{{- define "delta-sink.validateNames" -}}
{{- $own := include "delta-sink.labels" (dict "root" (dict "Values" dict "Release" .Release "Chart" .Chart) "component" "any") | fromYaml -}}
{{- $common := .Values.commonLabels | default dict -}}
{{- $monitor := .Values.podMonitor.labels | default dict -}}
{{- range $group, $labels := dict "commonLabels" $common "podMonitor.labels" $monitor -}}
{{- range $key := keys $labels | sortAlpha -}}
{{- if hasKey $own $key -}}
{{- fail (printf "%s: the chart sets %s itself" $group $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $key := keys $monitor | sortAlpha -}}
{{- if hasKey $common $key -}}
{{- fail (printf "podMonitor.labels: %s stands in commonLabels, too; give it in one of them" $key) -}}
{{- end -}}
{{- end -}}
{{- if hasKey (.Values.podAnnotations | default dict) "checksum/config" -}}
{{- fail "podAnnotations: the chart sets checksum/config itself" -}}
{{- end -}}
{{- $names := dict -}}
{{- range $schedule := .Values.schedules -}}
{{- if hasKey $names $schedule.name -}}
{{- fail (printf "schedules: two have the name %s" $schedule.name) -}}
{{- end -}}
{{- $_ := set $names $schedule.name true -}}
{{- end -}}
{{- end -}}

{{- define "delta-sink.validateScale" -}}
{{- $values := .Values -}}
{{- $partitions := $values.partitions -}}
{{- $writers := include "delta-sink.replicas" $values.writer | int64 -}}
{{- if and $partitions (gt $writers ($partitions | int64)) -}}
{{- fail (printf "writer.replicas: %d writers for %v partitions; those beyond would stand idle" $writers $partitions) -}}
{{- end -}}
{{- if $values.keda.enabled -}}
{{- if not (kindIs "invalid" $values.writer.replicas) -}}
{{- fail "writer.replicas and keda.enabled: the autoscaler decides how many writers there are; leave replicas out" -}}
{{- end -}}
{{- if not $partitions -}}
{{- fail "keda.enabled: needs partitions, which bound the number of writers" -}}
{{- end -}}
{{- if and $values.keda.maxReplicas (gt ($values.keda.maxReplicas | int64) ($partitions | int64)) -}}
{{- fail (printf "keda.maxReplicas: %v writers for %v partitions; those beyond would stand idle" $values.keda.maxReplicas $partitions) -}}
{{- end -}}
{{- if $values.existingConfigMap -}}
{{- fail "keda.enabled: the consumer group is not known with existingConfigMap; use config" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "delta-sink.validateConfig" -}}
{{- $values := .Values -}}
{{- $config := $values.config | default dict -}}
{{- $uri := dig "table" "uri" "" $config -}}
{{- if not (contains "://" $uri) -}}
{{- fail (printf "config.table.uri: %q is a path within a pod, which goes with the pod; use an object store" $uri) -}}
{{- end -}}
{{- $pods := 0 -}}
{{- range $component := list "writer" "compactor" "vacuum" -}}
{{- $group := get $values $component -}}
{{- if $group.enabled -}}
{{- $pods = add $pods (include "delta-sink.replicas" $group | int64) -}}
{{- end -}}
{{- end -}}
{{- if and (or (gt $pods 1) $values.keda.enabled) (eq (dig "locks" "store" "sqlite" $config) "sqlite") -}}
{{- fail "config.locks: a SQLite file serves one pod, and there are more; use locks.store: dynamodb" -}}
{{- end -}}
{{- if not (hasKey $config "control") -}}
{{- range $component := list "compactor" "vacuum" -}}
{{- if (get $values $component).enabled -}}
{{- fail (printf "%s.enabled: needs the group control in config; add it, or set %s.enabled to false" $component $component) -}}
{{- end -}}
{{- end -}}
{{- if $values.schedules -}}
{{- fail "schedules: commands need the group control in config" -}}
{{- end -}}
{{- end -}}
{{- $floor := dig "vacuum" "retention_hours_min" 168 $config | int64 -}}
{{- $retention := dig "vacuum" "retention_hours" 168 $config | int64 -}}
{{- if lt $retention $floor -}}
{{- fail (printf "config.vacuum.retention_hours: %d is below retention_hours_min, which is %d" $retention $floor) -}}
{{- end -}}
{{- $host := dig "http" "host" "0.0.0.0" $config -}}
{{- if or (hasPrefix "127." $host) (eq $host "localhost") (eq $host "::1") -}}
{{- fail (printf "config.http.host: nobody outside of the pod reaches %s, the probes neither; leave it out" $host) -}}
{{- end -}}
{{- if eq (include "delta-sink.port" . | int64) 0 -}}
{{- fail "config.http.port: probes need a port that is known before; 0 takes any" -}}
{{- end -}}
{{- end -}}

{{- define "delta-sink.validateSecrets" -}}
{{- $config := .Values.config | default dict -}}
{{- range $key, $value := dig "kafka" dict $config -}}
{{- if and (regexMatch "password|secret|\\.key\\.pem$|jaas|token" $key) (not (contains "${" (toString $value))) -}}
{{- fail (printf "config.kafka: %s stands there as plain text; write a reference such as ${NAME}" $key) -}}
{{- end -}}
{{- end -}}
{{- range $key := list "secret_access_key" "session_token" -}}
{{- $value := dig "table" "storage" $key "" $config -}}
{{- if and $value (not (contains "${" $value)) -}}
{{- fail (printf "config.table.storage.%s: it stands there as plain text; write a reference such as ${NAME}" $key) -}}
{{- end -}}
{{- end -}}
{{- $auth := dig "registry" "basic_auth" "" $config -}}
{{- if and $auth (not (contains "${" $auth)) -}}
{{- fail "config.registry.basic_auth: it stands there as plain text; write a reference such as ${NAME}" -}}
{{- end -}}
{{- range $key, $value := dig "control" "signing_keys" dict ($config | default dict) -}}
{{- if not (contains "${" (toString $value)) -}}
{{- fail (printf "config.control.signing_keys.%s: it stands there as plain text; write a reference such as ${NAME}" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
