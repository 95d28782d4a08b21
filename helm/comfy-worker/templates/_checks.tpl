{{/* Mistakes across several values: each says what is wrong and what to write instead. */}}
{{- define "comfy-worker.check" -}}
{{- include "comfy-worker.checkSettings" . }}
{{- include "comfy-worker.checkScaling" . }}
{{- include "comfy-worker.checkVolumes" . }}
{{- include "comfy-worker.checkNetwork" . }}
{{- if and .Values.store.existingSecret (hasKey .Values.serviceAccount.annotations "eks.amazonaws.com/role-arn") }}
{{- fail "\n\nstore.existingSecret and the service account's eks.amazonaws.com/role-arn are both set: the keys would win over the role. Remove one of them.\n" }}
{{- end }}
{{- end }}

{{- define "comfy-worker.checkSettings" -}}
{{- if not (dig "store" "uri" "" .Values.config) }}
{{- fail "\n\nconfig.store.uri is missing: results need a place, for example --set config.store.uri=s3://bucket/prefix\n" }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if and (hasPrefix "COMFY_WORKER_" .name) (hasKey . "value") }}
{{- fail (printf "\n\nextraEnv sets %s: settings go into config as section → key → value, where they are checked. Only a valueFrom belongs here.\n" .name) }}
{{- end }}
{{- end }}
{{- $owned := dict
  "amqp.url" "put the URL into the Secret broker.existingSecret, under the key broker.urlKey"
  "amqp.management_url" "put the URL into the Secret broker.existingSecret, under the key broker.managementUrlKey"
  "admin.token" "put the token into a Secret and name it in admin.existingSecret"
  "admin.listen" "set admin.port"
  "comfyui.path" "set comfyui.path at the top level: volumes are mounted there too"
  "comfyui.workdir" "set comfyui.path at the top level: volumes are mounted there too"
  "worker.grace" "set grace.seconds: the pod's termination grace period follows it"
  "worker.state_dir" "set state.path: the volume is mounted there"
  "worker.id" "leave it out: the worker is named after its pod"
}}
{{- if eq .Values.mode "job" }}
{{- $_ := set $owned "worker.max_jobs" "leave it out: it is 1 in mode job" }}
{{- $_ := set $owned "worker.idle_exit" "set job.idleExit" }}
{{- else }}
{{- $_ := set $owned "worker.idle_exit" "a Deployment starts a worker that ended again: leave idle workers to autoscaling, or set mode=job" }}
{{- end }}
{{- $config := .Values.config }}
{{- range $key, $instead := $owned }}
{{- $parts := splitList "." $key }}
{{- if hasKey (default dict (get $config (first $parts))) (last $parts) }}
{{- fail (printf "\n\nconfig.%s cannot be set here: %s.\n" $key $instead) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "comfy-worker.checkScaling" -}}
{{- $scaling := .Values.autoscaling }}
{{- if and (eq .Values.mode "job") (not $scaling.enabled) }}
{{- fail "\n\nmode is job and autoscaling.enabled is false: nothing would start the pods. Set autoscaling.enabled=true, or mode=deployment.\n" }}
{{- end }}
{{- if and $scaling.enabled (gt (int $scaling.minReplicas) (int $scaling.maxReplicas)) }}
{{- fail (printf "\n\nautoscaling.minReplicas (%d) is above autoscaling.maxReplicas (%d).\n" (int $scaling.minReplicas) (int $scaling.maxReplicas)) }}
{{- end }}
{{- if and $scaling.enabled $scaling.triggerAuthentication.create (eq $scaling.protocol "http") (not .Values.broker.managementUrlKey) }}
{{- fail "\n\nautoscaling.protocol is http, which asks the management API, and broker.managementUrlKey is empty: name the Secret's key, or set autoscaling.protocol=amqp.\n" }}
{{- end }}
{{- if and $scaling.enabled (not $scaling.triggerAuthentication.create) (not $scaling.triggerAuthentication.name) }}
{{- fail "\n\nautoscaling.triggerAuthentication.create is false: name the one that KEDA shall use in autoscaling.triggerAuthentication.name.\n" }}
{{- end }}
{{- if eq .Values.mode "job" }}
{{- $counted := eq (include "comfy-worker.countsUnacknowledged" .) "true" }}
{{- if and $counted (has .Values.job.scalingStrategy (list "accurate" "eager")) }}
{{- fail (printf "\n\njob.scalingStrategy is %s, which takes every message for one without a worker, but jobs in workers' hands are counted too: each poll would start pods for running jobs. Leave it empty, or set autoscaling.countUnacknowledged=false.\n" .Values.job.scalingStrategy) }}
{{- end }}
{{- if and (not $counted) (eq .Values.job.scalingStrategy "default") }}
{{- fail "\n\njob.scalingStrategy is default, which subtracts running Jobs from the messages, but only waiting messages are counted: jobs would wait behind running ones. Leave it empty, or set autoscaling.protocol=http and autoscaling.countUnacknowledged=true.\n" }}
{{- end }}
{{- if and (gt (int .Values.job.activeDeadlineSeconds) 0) (le (int .Values.job.activeDeadlineSeconds) (int .Values.grace.seconds)) }}
{{- fail "\n\njob.activeDeadlineSeconds is not above grace.seconds: it counts from the pod's start, with the boot. Set it above boot and longest job, or 0.\n" }}
{{- end }}
{{- else if and (eq (toString .Values.rollout.maxSurge) "0") (has (toString .Values.rollout.maxUnavailable) (list "0" "0%")) }}
{{- fail "\n\nrollout.maxSurge and rollout.maxUnavailable are both 0: no pod could ever be replaced. Set one of them.\n" }}
{{- end }}
{{- end }}

{{- define "comfy-worker.checkVolumes" -}}
{{- $most := int (ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled) }}
{{- if and (eq .Values.models.type "newClaim") (gt $most 1) (not (or (has "ReadWriteMany" .Values.models.accessModes) (has "ReadOnlyMany" .Values.models.accessModes))) }}
{{- fail (printf "\n\nmodels.accessModes is %s, but up to %d workers share the claim: pods on other nodes would never start. Use ReadWriteMany, or models.type emptyDir or hostPath.\n" (join ", " .Values.models.accessModes) $most) }}
{{- end }}
{{- range $name := list "models" "state" }}
{{- $volume := get $.Values $name }}
{{- if and (eq $volume.type "existingClaim") (not $volume.existingClaim) }}
{{- fail (printf "\n\n%s.type is existingClaim: name the claim in %s.existingClaim.\n" $name $name) }}
{{- end }}
{{- if and (eq $volume.type "hostPath") (not $volume.hostPath) }}
{{- fail (printf "\n\n%s.type is hostPath: name the node's folder in %s.hostPath.\n" $name $name) }}
{{- end }}
{{- end }}
{{- if has "models" .Values.comfyui.writable }}
{{- fail "\n\ncomfyui.writable lists models, which has a volume of its own: see models.type.\n" }}
{{- end }}
{{- end }}

{{- define "comfy-worker.checkNetwork" -}}
{{- if .Values.networkPolicy.enabled }}
{{- $egress := .Values.networkPolicy.egress }}
{{- range $name := list "broker" "store" "sts" "otlp" }}
{{- range (get $egress $name).cidrs }}
{{- $length := int (splitList "/" . | last) }}
{{- $wide := and (not (contains ":" .)) (ne . "0.0.0.0/0") (or (lt $length 8) (and (hasPrefix "169." .) (lt $length 16))) }}
{{- if or $wide (hasPrefix "169.254." .) (hasPrefix "fe80:" (lower .)) (hasPrefix "fd00:ec2:" (lower .)) }}
{{- fail (printf "\n\nnetworkPolicy.egress.%s.cidrs holds %s, and with it the metadata address, where clouds keep the node's credentials. Name narrower blocks, or 0.0.0.0/0, which leaves link-local addresses out. EKS Pod Identity: networkPolicy.egress.podIdentity.\n" $name .) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (dig "traces" "endpoint" "" .Values.config) (not (or $egress.otlp.to $egress.otlp.cidrs)) }}
{{- fail "\n\nconfig.traces.endpoint is set, and the network policy lets no traces out: name the collector in networkPolicy.egress.otlp.to or .cidrs.\n" }}
{{- end }}
{{- with dig "store" "endpoint" "" .Values.config }}
{{- $url := urlParse . }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) }}
{{- $open := list }}
{{- range $egress.store.ports }}
{{- $open = append $open (toString (int .)) }}
{{- end }}
{{- if not (has $port $open) }}
{{- fail (printf "\n\nconfig.store.endpoint is at port %s, and the network policy opens %s: add it to networkPolicy.egress.store.ports.\n" $port (join ", " $open)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Whether KEDA's number holds jobs in workers' hands. */}}
{{- define "comfy-worker.countsUnacknowledged" -}}
{{- and (eq .Values.autoscaling.protocol "http") .Values.autoscaling.countUnacknowledged }}
{{- end }}
